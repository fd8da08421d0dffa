"""Approval: by whom, for what, and for how long."""

import governed
import pytest

from flows import decisions
from flows.approval import settle_candidate
from flows.approval_policy import load_approval_policy
from flows.errors import BadRequestError
from infra.chain import EntryKind

PERSON = "grounds: {internal: person}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One installation for all tests, each with a candidate of its own; nothing is ever promoted in it."""
    return governed.Installation(tmp_path_factory.mktemp("decisions") / "home", approval=PERSON)


@pytest.fixture
def judged(world, request):
    name = request.node.name
    return world.judged(name, [world.request(f"concept of {name}")])


def test_a_candidate_waits_where_the_policy_asks_for_a_person(world, judged):
    assert settle_candidate(world.services, world.registry, judged).decision == "waiting"
    assert judged in [candidate.judged for candidate in decisions.waiting_candidates(world.services)]
    assert world.registry.champion() is None
    assert decisions.find_judged(world.services, judged.body["digest"][:8]) == judged


@pytest.mark.parametrize(
    "name", ["Ada Lovelace", "ada lovelace", "Lovelace, Ada", " ＡＤＡ  Lovelace.", "ADA@example.org"]
)
def test_a_requester_cannot_approve_however_the_name_is_written(world, judged, name):
    with pytest.raises(decisions.NotIndependentError, match=judged.body["request_ids"][0]):
        decisions.approve(world.services, judged, by=name)
    assert decisions.find_candidate(world.services, judged).state == "waiting"


@pytest.mark.parametrize("name", ["", "  ", "policy", "Policy", "..."])
def test_an_approver_is_a_named_person(world, judged, name):
    with pytest.raises(BadRequestError, match="--by"):
        decisions.approve(world.services, judged, by=name)


def test_an_approval_names_digests_and_not_the_approver(world, judged):
    entry, is_new = decisions.approve(world.services, judged, by="Grace Hopper")
    assert is_new
    assert decisions.approve(world.services, judged, by="Grace Hopper") == (entry, False)
    assert decisions.approve(world.services, judged, by="Barbara Liskov") == (entry, False)
    assert entry.body["digest"] == judged.body["digest"]
    assert entry.body["evidence"] == judged.body["evidence"]
    assert "Grace" not in entry.to_line()
    assert decisions.approver_name(world.services, entry) == "Grace Hopper"
    world.services.personal.erase(f"approver/{judged.body['key']}/0")
    assert "erased" in decisions.approver_name(world.services, entry)
    assert world.services.ledger.verify() == []


def test_a_declined_candidate_is_declined_until_a_person_gives_a_reason(world, judged):
    with pytest.raises(BadRequestError, match="reason"):
        decisions.decline(world.services, judged, by="Grace Hopper", reason=" ")
    entry, is_new = decisions.decline(world.services, judged, by="Grace Hopper", reason="looks wrong")
    assert is_new
    assert decisions.decline(world.services, judged, by="Grace Hopper", reason="still") == (entry, False)
    assert settle_candidate(world.services, world.registry, judged).decision == "declined"
    assert judged not in [candidate.judged for candidate in decisions.waiting_candidates(world.services)]
    with pytest.raises(BadRequestError, match="was declined before"):
        decisions.approve(world.services, judged, by="Barbara Liskov")
    assert decisions.approve(world.services, judged, by="Barbara Liskov", reason="looked again")[1]


def test_an_approval_that_ran_out_can_be_given_again(world, judged, tmp_path, monkeypatch):
    short = tmp_path / "approval.yaml"
    short.write_text("valid_days: 0.000001", encoding="utf-8")
    services = world.services
    settings = services.settings.model_copy(update={"approval_policy": short})
    brief = type(services)(settings, services.store, services.ledger, services.personal)
    first, _ = decisions.approve(brief, judged, by="Grace Hopper")
    assert decisions.find_candidate(services, judged).state in ("approved", "waiting")
    import time

    time.sleep(1.1)  # the record keeps whole seconds
    second, is_new = decisions.approve(services, judged, by="Grace Hopper")
    assert is_new
    assert second != first


@pytest.mark.parametrize("digest", ["0" * 16, "ab", ""])
def test_a_digest_that_is_nobodys_or_too_short_is_refused(world, judged, digest):
    with pytest.raises(BadRequestError, match="scapre approvals"):
        decisions.find_judged(world.services, digest)


def test_the_table_is_typed_and_what_it_leaves_out_asks_for_a_person(tmp_path):
    path = tmp_path / "approval.yaml"
    path.write_text("grounds: {copyright: automatic}", encoding="utf-8")
    policy = load_approval_policy(path)
    assert not policy.needs_person({"copyright"})
    assert policy.needs_person({"copyright", "privacy"})
    assert policy.needs_person({"unknown"})
    for text, found in [
        ("grounds: {copyrigth: automatic}", "copyrigth"),
        ("grounds: {copyright: maybe}", "grounds.copyright"),
        ("valid_days: 0", "valid_days"),
        ("valid: 3", "valid"),
        ("[", "YAML"),
        ("- 1", "valid dictionary"),
    ]:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(BadRequestError, match=found):
            load_approval_policy(path)


def test_the_policy_that_ships_approves_the_demo():
    assert not load_approval_policy().needs_person({"internal"})


def test_the_ledger_of_all_this_verifies(world):
    assert world.services.ledger.verify() == []
    assert world.services.ledger.entries(kind=EntryKind.PROMOTED) == []
