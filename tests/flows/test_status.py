"""One screen: what is read off a real ledger and registry."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import governed
import pytest
import yaml

from flows import intake
from flows.approval import settle_candidate
from flows.case_states import ENDED, CaseState
from flows.cases import Case, fold_cases
from flows.cli import run
from flows.deadlines import load_deadlines
from flows.requests import load_request, parse_request
from flows.status import read_status, waiting_for
from infra.chain import EntryKind
from tests.flows.case_entries import Tale

EXAMPLE = Path(__file__).parents[2] / "flows" / "demo_request.yaml"


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """One request in production, one whose candidate waits for approval, one that waits for the desk; an incident."""
    world = governed.Installation(
        tmp_path_factory.mktemp("world") / "home", approval="grounds: {internal: automatic, safety: person}"
    )
    services = world.services
    empty = read_status(services)
    assert (empty.champion, empty.active, empty.waiting, empty.due) == (None, 0, (), ())
    own = world.request("rose")
    assert settle_candidate(services, world.registry, world.judged("one", [own])).decision == "promoted"
    asked = load_request(EXAMPLE).model_copy(update={"ground": "safety"})
    waits, _ = intake.add_request(services, asked)
    assert settle_candidate(services, world.registry, world.judged("two", [own, waits])).decision == "waiting"
    document = {**yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")), "ground": "copyright", "jurisdiction": "US"}
    received_at = datetime.now(UTC) - timedelta(hours=23)
    intake.add_request(services, parse_request({**document, "received_at": received_at}, source="x"))
    incident = {"incident_id": "inc-1", "digest": "1" * 64, "reasons": ["x"], "request_ids": [own]}
    services.ledger.append(EntryKind.INCIDENT_OPENED, incident)
    return services


def test_everything_is_answered(services):
    found = read_status(services)
    assert found.champion is not None
    assert (found.champion["version"], found.champion["requests"]) == ("1", 1)
    assert found.states == {"promoted": 1, "judged": 1, "received": 1}
    assert (found.active, found.concepts) == (2, 11)
    assert [(due.name, due.state) for due in found.due] == [("acknowledge", "near")]
    assert [one.whom for one in found.waiting] == ["approver", "desk"]
    assert found.waiting[0].what.startswith("`scapre approve")
    assert [(said.kind, said.verdict) for said in found.verdicts] == [("judged", "passed")] * 2
    assert [incident["incident_id"] for incident in found.incidents] == ["inc-1"]
    assert found.faults == 0


def test_a_deadline_becomes_missed(services):
    late = read_status(services, now=datetime.now(UTC) + timedelta(hours=2))
    assert ("acknowledge", "missed") in [(due.name, due.state) for due in late.due]


def test_the_screen_and_the_json_name_no_concept(services, capsys, monkeypatch):
    monkeypatch.setenv("SCAPRE_HOME", str(services.settings.home))
    monkeypatch.setenv("SCAPRE_MLFLOW_TRACKING_URI", services.settings.mlflow_tracking_uri)
    monkeypatch.setenv("SCAPRE_REGISTERED_MODEL_NAME", services.settings.registered_model_name)
    assert run(["status"]) == 0
    screen = capsys.readouterr().out
    assert "version 1" in screen
    assert "desk: triage" in screen
    assert "inc-1" in screen
    assert run(["status", "--json"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["active"] == 2
    asked = load_request(EXAMPLE)
    assert not any(subject.concept in screen + text for subject in asked.subjects)
    assert asked.requester.name not in screen + text


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
