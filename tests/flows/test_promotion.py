"""Promotion and rollback against a real store, registry and ledger."""

import json
from datetime import UTC, datetime, timedelta

import governed
import pytest

from flows import decisions, desk, promotion
from flows.approval import settle_candidate
from flows.audit import audit_registry
from flows.case_states import Event
from flows.errors import BadRequestError
from flows.rollback import roll_back
from flows.stored import AlteredModelError
from infra.chain import Entry
from infra.errors import LockHeldError, TransientFailure

AUTOMATIC = "grounds: {internal: automatic}"


@pytest.fixture
def world(tmp_path):
    return governed.Installation(tmp_path / "home", approval=AUTOMATIC)


def promoted(world: governed.Installation, name: str, requests: list[str]) -> Entry:
    judged = world.judged(name, requests)
    assert settle_candidate(world.services, world.registry, judged).decision == "promoted"
    return judged


@pytest.fixture
def two(world):
    """Two champions: the second honours one request more."""
    first, second = world.request("rose"), world.request("tulip")
    return promoted(world, "one", [first]), promoted(world, "two", [first, second])


@pytest.mark.parametrize("verdict", ["failed", "inconclusive"])
def test_nothing_but_a_passed_verdict_promotes(world, verdict):
    judged = world.judged("one", [world.request("rose")], verdict=verdict)
    for is_repeated in (False, True):
        settled = settle_candidate(world.services, world.registry, judged)
        assert (settled.decision, settled.is_repeated) == ("refused", is_repeated)
    with pytest.raises(BadRequestError, match="nothing but a passed verdict"):
        decisions.approve(world.services, judged, by="Grace")
    assert world.standing() == (None, None, "1")
    assert world.kinds() == ["judged", "refused"]


def test_a_promotion_moves_everything_together_and_repeating_it_changes_nothing(world):
    judged = promoted(world, "one", [world.request("rose")])
    entries = world.services.ledger.entries()
    assert settle_candidate(world.services, world.registry, judged).is_repeated
    assert world.services.ledger.entries() == entries
    assert world.kinds() == ["judged", "approved", "promoted"]
    assert world.standing() == ("1", None, None)
    assert world.registry.version(1).tags["scapre.standing"] == "champion"
    pointer = json.loads(world.services.store.get_bytes(promotion.pointer_key(world.services)))
    assert (pointer["version"], pointer["digest"]) == ("1", judged.body["digest"])
    assert pointer["entry"] == entries[-1].entry_hash
    assert audit_registry(world.services, world.registry) == []


def test_a_rollback_restores_the_previous_champion_once(world, two):
    services, registry = world.services, world.registry
    assert world.standing() == ("2", "1", None)
    with pytest.raises(BadRequestError, match="--reopen"):
        roll_back(services, registry, reason="worse", by="Grace")
    entry, is_new = roll_back(services, registry, reason="worse", by="Grace", reopens=True)
    assert is_new
    assert roll_back(services, registry, reason="worse", by="Grace", reopens=True) == (entry, False)
    assert world.standing() == ("1", None, None)
    assert registry.version(2).tags["scapre.standing"] == "former"
    assert "Grace" not in entry.to_line()
    assert audit_registry(services, registry) == []
    with pytest.raises(BadRequestError, match="previous champion"):
        roll_back(services, registry, reason="again", by="Grace", reopens=True)


def test_what_was_rolled_back_is_promoted_again_only_by_a_person_with_a_reason(world, two):
    services, registry = world.services, world.registry
    roll_back(services, registry, reason="worse", by="Grace", reopens=True)
    assert settle_candidate(services, registry, two[1]).decision == "waiting"
    with pytest.raises(BadRequestError, match="add --reason"):
        decisions.approve(services, two[1], by="Grace")
    approval, is_new = decisions.approve(services, two[1], by="Grace", reason="looked again")
    assert is_new
    assert settle_candidate(services, registry, two[1]).decision == "promoted"
    assert world.standing() == ("2", "1", None)
    assert services.ledger.find(promotion.promotion_key(approval)) is not None
    assert audit_registry(services, registry) == []


def test_a_former_champion_returns_when_requests_are_withdrawn(world, two):
    desk.decide(world.services, two[1].body["request_ids"][1], Event.WITHDRAW, by="desk", reason="settled")
    assert settle_candidate(world.services, world.registry, two[0]).decision == "promoted"
    assert world.standing() == ("1", "2", None)
    assert audit_registry(world.services, world.registry) == []


def test_an_approval_never_takes_a_request_out_of_force_that_a_newer_champion_honours(world):
    first, second = world.request("rose"), world.request("tulip")
    old = world.judged("one", [first])
    approval = decisions.approve_by_policy(world.services, old)
    assert approval is not None
    promoted(world, "two", [first, second])
    with pytest.raises(promotion.StaleApprovalError, match=second):
        promotion.promote(world.services, world.registry, approval)
    assert world.standing() == ("1", None, None)


def test_an_approval_that_ran_out_or_was_taken_back_promotes_nothing(world, monkeypatch):
    judged = world.judged("one", [world.request("rose")])
    approval = decisions.approve_by_policy(world.services, judged)
    assert approval is not None

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(UTC) + timedelta(days=8)

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "datetime", Later)
        with pytest.raises(promotion.StaleApprovalError, match="ran out"):
            promotion.promote(world.services, world.registry, approval)
    decisions.decline(world.services, judged, by="Grace", reason="no")
    with pytest.raises(promotion.StaleApprovalError, match="declined since"):
        promotion.promote(world.services, world.registry, approval)
    assert world.standing() == (None, None, None)


@pytest.mark.parametrize("place", ["model", "evidence"])
def test_a_stored_byte_that_changed_after_approval_stops_the_promotion_and_fails_the_audit(world, place):
    first = promoted(world, "one", [world.request("rose")])
    judged = world.judged("two", [*first.body["request_ids"], world.request("tulip")])
    key = {"model": f"candidates/{judged.body['key']}/checkpoint", "evidence": f"evidence/{judged.body['key']}"}[place]
    entry = max(world.services.store.manifest(key).entries, key=lambda e: e.bytes)
    blob = f"blobs/sha256/{entry.sha256[:2]}/{entry.sha256}"
    content = world.services.store.get_bytes(blob)
    world.services.store.put_bytes(blob, content[:-1] + b"!")
    with pytest.raises(AlteredModelError, match=entry.path if place == "model" else "evidence"):
        settle_candidate(world.services, world.registry, judged)
    assert world.standing() == ("1", None, "2")
    world.services.store.put_bytes(blob, content)
    assert settle_candidate(world.services, world.registry, judged).decision == "promoted"
    world.services.store.put_bytes(blob, content[:-1] + b"!")
    assert any(place in difference for difference in audit_registry(world.services, world.registry))


EFFECTS = ("note_intent", "_move", "_write_pointer", "clear_intent")


def fails(*_arguments: object, **_options: object) -> None:
    """A step that fails as the outside world does, before it does anything."""
    raise TransientFailure("expected an answer, found none; try again")


@pytest.mark.parametrize("effect", EFFECTS)
def test_a_promotion_that_fails_at_any_step_is_undone_or_finished_by_the_next_one(world, monkeypatch, effect):
    first = promoted(world, "one", [world.request("rose")])
    judged = world.judged("two", [*first.body["request_ids"], world.request("tulip")])
    with monkeypatch.context() as patch:
        patch.setattr(promotion, effect, fails)
        with pytest.raises(TransientFailure):
            settle_candidate(world.services, world.registry, judged)
    assert settle_candidate(world.services, world.registry, judged).decision == "promoted"
    assert world.kinds().count("promoted") == 2
    assert world.standing() == ("2", "1", None)
    assert audit_registry(world.services, world.registry) == []


def test_aliases_that_the_ledger_could_not_record_are_put_back_at_once(world, monkeypatch):
    first = promoted(world, "one", [world.request("rose")])
    judged = world.judged("two", [*first.body["request_ids"], world.request("tulip")])
    approval = decisions.approve_by_policy(world.services, judged)
    assert approval is not None
    with monkeypatch.context() as patch:
        patch.setattr(type(world.services.ledger), "append", fails)
        with pytest.raises(TransientFailure):
            promotion.promote(world.services, world.registry, approval)
    assert world.standing() == ("1", None, "2")
    assert audit_registry(world.services, world.registry) == []


def test_an_alias_moved_by_hand_stops_promotions_until_it_is_repaired(world, two):
    world.registry._client.set_registered_model_alias(world.registry.model_name, "champion", "1")
    assert any("alias champion" in found for found in audit_registry(world.services, world.registry))
    judged = world.judged("three", two[1].body["request_ids"])
    with pytest.raises(promotion.DriftedAliasError, match="registry repair"):
        settle_candidate(world.services, world.registry, judged)
    promotion.repair(world.services, world.registry)
    assert audit_registry(world.services, world.registry) == []
    assert settle_candidate(world.services, world.registry, judged).decision == "promoted"


@pytest.mark.parametrize(
    ("field", "value"), [("version", "9"), ("digest", "0" * 64), ("entry", "0" * 64), ("stranger", 1)]
)
def test_an_altered_pointer_is_named_and_repaired(world, two, field, value):
    key = promotion.pointer_key(world.services)
    pointer = json.loads(world.services.store.get_bytes(key)) | {field: value}
    world.services.store.put_bytes(key, json.dumps(pointer).encode())
    (difference,) = audit_registry(world.services, world.registry)
    assert field in difference
    promotion.repair(world.services, world.registry)
    assert audit_registry(world.services, world.registry) == []


def test_a_promotion_waits_for_a_killed_holder_and_no_longer(world, monkeypatch):
    from infra.locks import acquire_lock

    monkeypatch.setattr(promotion, "LOCK_SLACK_SECONDS", -29.5)
    lock = acquire_lock(world.services.ledger.engine, owner="killed", lease_seconds=60)
    judged = world.judged("one", [world.request("rose")])
    with pytest.raises(LockHeldError, match="held by killed"):
        settle_candidate(world.services, world.registry, judged)
    lock.release()
    assert settle_candidate(world.services, world.registry, judged).decision == "promoted"
