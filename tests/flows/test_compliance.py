"""The compliance flow on the reference model: real registry, ledger, object store and Prefect."""

import json
from typing import Any

import pytest
import yaml
from promoted import POLICY, REQUEST, Promoted, promote

from flows import cli, incidents, intake
from flows.case_states import Event
from flows.desk import decide
from flows.exit_codes import ExitCode
from flows.requests import TakedownRequest
from infra.chain import EntryKind
from infra.storage import LocalStore


@pytest.fixture(scope="module")
def weak(tmp_path_factory) -> Promoted:
    """A champion that still draws its target more often than not, promoted under a limit that allowed it."""
    return promote(tmp_path_factory.mktemp("weak") / "home", erasure_strength=0.7)


@pytest.fixture
def scapre(weak, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SCAPRE_HOME", str(weak.services.settings.home))
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump(POLICY), encoding="utf-8")

    def run(*arguments: str) -> tuple[int, str]:
        options = ("--policy", str(policy)) if arguments[0] == "compliance" else ()
        code = cli.run([*arguments, *options])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def entries(weak: Promoted, kind: EntryKind) -> list[dict[str, Any]]:
    return [entry.body for entry in weak.services.ledger.entries(kind=kind)]


def test_a_dry_run_says_what_would_be_asked_and_changes_nothing(weak, scapre):
    before = len(weak.services.ledger.entries())
    code, said = scapre("compliance", "run", "--dry-run")
    assert code == ExitCode.OK, said
    assert weak.request_id in said
    assert "at most 44" in said  # 32 and 4 of the target, 2 of 2 retained concepts by each model
    assert len(weak.services.ledger.entries()) == before


def test_a_regression_is_recorded_and_opens_one_incident_however_often_it_is_run(weak, scapre):
    code, said = scapre("compliance", "run")
    assert code == ExitCode.FAILED, said
    (record,) = entries(weak, EntryKind.REVERIFIED)
    assert record["verdict"] == "failed"
    assert record["request_ids"] == [weak.request_id]
    assert record["regressions"][0]["subjects"] == [f"{weak.request_id}#1"]
    assert "rose" not in json.dumps(record)
    (incident,) = incidents.list_incidents(weak.services)
    assert incident.incident_id in said
    champion = weak.services.open_registry().champion()
    assert champion is not None
    assert champion.tags[incidents.INCIDENT_TAG] == incident.incident_id

    code, said = scapre("compliance", "run")
    assert code == ExitCode.FAILED
    assert "nothing was done" in said
    assert len(entries(weak, EntryKind.REVERIFIED)) == 1
    assert len(entries(weak, EntryKind.INCIDENT_OPENED)) == 1
    assert weak.services.ledger.verify() == []


def test_a_request_that_came_later_waits_for_a_takedown_run_and_is_named(weak, scapre):
    later = TakedownRequest.model_validate(REQUEST | {"subjects": [{"concept": "lion", "kind": "object"}]})
    request_id, _ = intake.add_request(weak.services, later)
    try:
        code, said = scapre("compliance", "run", "--dry-run")
        assert code == ExitCode.OK, said
        assert f"judge       {weak.request_id}" in said.splitlines()
        assert f"pending     {request_id}" in said.splitlines()
    finally:
        decide(weak.services, request_id, Event.WITHDRAW, by="requester")


def test_a_budget_too_small_for_one_request_is_refused_before_anything_is_drawn(scapre):
    code, said = scapre("compliance", "run", "--max-pictures", "20")
    assert code == ExitCode.BAD_INPUT
    assert "found 20 pictures; the smallest takes 44" in said.replace("\n", " ")


def test_an_altered_champion_is_an_incident_and_is_not_judged(weak, scapre):
    store = weak.services.store
    assert isinstance(store, LocalStore)
    manifest = store.manifest(f"candidates/{weak.plan.key}/checkpoint")
    weights = next(entry for entry in manifest.entries if entry.path.startswith("unet/") and entry.bytes > 100_000)
    blob = store.root / "blobs" / "sha256" / weights.sha256[:2] / weights.sha256
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    reverified = len(entries(weak, EntryKind.REVERIFIED))
    try:
        code, said = scapre("compliance", "run")
    finally:
        blob.write_bytes(whole)
    assert code == ExitCode.COULD_NOT_JUDGE, said
    assert "byte for byte" in said
    assert len(entries(weak, EntryKind.REVERIFIED)) == reverified
    assert incidents.list_incidents(weak.services)[-1].is_open


def test_an_incident_is_closed_by_name_with_a_reason(weak, scapre):
    for incident in incidents.list_incidents(weak.services):
        code, said = scapre("incident", "close", incident.incident_id, "--by", "officer", "--reason", "rolled back")
        assert code == ExitCode.OK, said
    assert "no incident is open" in scapre("incident", "list")[1]
    assert "rolled back" in scapre("incident", "list", "--all")[1].replace("\n", " ")
