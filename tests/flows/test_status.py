"""One screen: what is read off a real ledger and registry."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from flows import intake
from flows.case_states import ENDED, CaseState
from flows.cases import Case, fold_cases
from flows.cli import run
from flows.deadlines import load_deadlines
from flows.requests import parse_request
from flows.services import open_services
from flows.status import read_status, waiting_for
from infra.chain import EntryKind
from infra.settings import load_settings
from tests.flows.case_entries import Tale

EXAMPLE = yaml.safe_load((Path(__file__).parents[2] / "flows" / "demo_request.yaml").read_text(encoding="utf-8"))


def request(**changes):
    return parse_request({**EXAMPLE, **changes}, source="x")


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """One request in production, one that waits for the desk, late; one incident."""
    services = open_services(load_settings({}, home=tmp_path_factory.mktemp("home")))
    empty = read_status(services)
    assert (empty.champion, empty.active, empty.waiting, empty.due) == (None, 0, (), ())
    own, _ = intake.add_request(services, request())
    late = request(ground="copyright", jurisdiction="US", received_at=datetime.now(UTC) - timedelta(hours=23))
    intake.add_request(services, late)
    facts = {"key": "k", "digest": "1" * 64, "request_ids": [own]}
    services.ledger.append(EntryKind.CANDIDATE_BUILT, facts)
    services.ledger.append(EntryKind.JUDGED, {**facts, "verdict": "passed", "evidence": "e", "run_id": "r" * 32})
    registry = services.open_registry()
    version = registry.register(source="file:///x", digest="1" * 64)
    from infra.locks import hold_lock

    with hold_lock(services.ledger.engine, owner="t", lease_seconds=60, wait_seconds=1) as lock:
        registry.promote(version.version, expected_champion=None, lock=lock)
    services.ledger.append(EntryKind.PROMOTED, {**facts, "model": "m", "version": version.version})
    incident = {"incident_id": "inc-1", "digest": "1" * 64, "reasons": ["x"], "request_ids": [own]}
    services.ledger.append(EntryKind.INCIDENT_OPENED, incident)
    return services


def test_everything_is_answered(services):
    found = read_status(services)
    assert found.champion is not None
    assert (found.champion["version"], found.champion["requests"]) == ("1", 1)
    assert found.states == {"promoted": 1, "received": 1}
    assert (found.active, found.concepts) == (1, 10)
    assert [(due.name, due.state) for due in found.due] == [("acknowledge", "near")]
    assert [(one.whom, one.what.split(":")[0]) for one in found.waiting] == [
        ("compliance", "confirm"),
        ("desk", "triage"),
    ]
    assert [(said.kind, said.verdict) for said in found.verdicts] == [("judged", "passed")]
    assert [incident["incident_id"] for incident in found.incidents] == ["inc-1"]
    assert found.faults == 0


def test_a_deadline_becomes_missed(services):
    late = read_status(services, now=datetime.now(UTC) + timedelta(hours=2))
    assert ("acknowledge", "missed") in [(due.name, due.state) for due in late.due]


def test_the_screen_and_the_json_name_no_concept(services, capsys, monkeypatch):
    monkeypatch.setenv("SCAPRE_HOME", str(services.settings.home))
    assert run(["status"]) == 0
    screen = capsys.readouterr().out
    assert "version 1" in screen
    assert "desk: triage" in screen
    assert "inc-1" in screen
    assert run(["status", "--json"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["active"] == 1
    assert not any(subject["concept"] in screen + text for subject in EXAMPLE["subjects"])
    assert EXAMPLE["requester"]["name"] not in screen + text


@pytest.mark.parametrize("state", sorted(set(CaseState) - ENDED - {CaseState.VALID}))
def test_every_open_case_waits_for_somebody(state):
    case = fold_cases(Tale().added().entries, load_deadlines())["req-1"]
    (waiting,) = waiting_for([Case(**{**vars(case), "state": state})])
    assert waiting.request_ids == ("req-1",)


def test_a_judged_case_waits_for_the_approver_only_if_it_passed():
    case = fold_cases(Tale().added().entries, load_deadlines())["req-1"]
    for verdict, whom in (("passed", "approver"), ("failed", "operator"), ("inconclusive", "operator")):
        judged = Case(**{**vars(case), "state": CaseState.JUDGED, "verdict": verdict})
        assert waiting_for([judged])[0].whom == whom


def test_a_paused_case_waits_for_the_requester():
    tale = Tale().added().desk(EntryKind.REQUEST_PAUSED, reason="asked")
    assert waiting_for(fold_cases(tale.entries, load_deadlines()).values())[0].whom == "requester"
