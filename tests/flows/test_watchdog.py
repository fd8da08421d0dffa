"""The watchdog against a real ledger, with nothing else there."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from flows import cli, intake
from flows.case_states import Event
from flows.deadlines import load_deadlines
from flows.desk import decide
from flows.exit_codes import ExitCode
from flows.requests import TakedownRequest
from flows.services import Services, open_services
from flows.watchdog import COMPLIANCE_EVERY, report, watch
from infra.chain import EntryKind
from infra.settings import load_settings

TABLE = load_deadlines()
RECEIVED = datetime(2026, 1, 5, 9, tzinfo=UTC)


@pytest.fixture
def services(tmp_path) -> Services:
    return open_services(load_settings({}, home=tmp_path / "home"))


def request(ground: str = "privacy") -> TakedownRequest:
    return TakedownRequest.model_validate(
        {
            "received_at": RECEIVED.isoformat(),
            "ground": ground,
            "jurisdiction": "EU",
            "requester": {"name": "A", "role": "data subject", "contact": "a@example.org"},
            "subjects": [{"concept": "rose", "kind": "object"}],
        }
    )


def promoted(services: Services, request_id: str) -> None:
    for kind, body in (
        (EntryKind.CANDIDATE_BUILT, {"key": "k"}),
        (EntryKind.JUDGED, {"key": "k", "verdict": "passed"}),
        (EntryKind.APPROVED, {"key": "k", "approver": "officer"}),
        (EntryKind.PROMOTED, {"key": "k", "version": "1"}),
    ):
        services.ledger.append(kind, {**body, "digest": "1" * 64, "request_ids": [request_id]})


def test_before_anything_is_near_there_is_nothing_to_say(services):
    intake.add_request(services, request())
    seen = watch(services.ledger, TABLE, now=RECEIVED + timedelta(minutes=1))
    assert seen.due == ()
    assert not seen.is_late
    assert seen.last_compliance is None


def test_a_missed_deadline_is_late_and_recorded_once_however_often_it_is_seen(services):
    request_id, _ = intake.add_request(services, request())
    now = RECEIVED + timedelta(days=400)
    for expected_new in (True, False):
        seen = watch(services.ledger, TABLE, now=now)
        assert seen.is_late
        assert {(each.request_id, each.state, each.is_new) for each in seen.due} == {
            (request_id, "missed", expected_new)
        }
        assert (report(services.ledger, seen) > 0) is expected_new
    assert services.ledger.verify() == []


def test_a_deadline_is_recorded_near_and_then_missed(services):
    intake.add_request(services, request())
    (first, *_) = sorted(each.due_at for each in watch(services.ledger, TABLE, now=RECEIVED + timedelta(days=400)).due)
    for now in (first - timedelta(seconds=1), first + timedelta(seconds=1)):
        report(services.ledger, watch(services.ledger, TABLE, now=now))
    states = [entry.body["state"] for entry in services.ledger.entries(kind=EntryKind.DEADLINE_REPORTED)]
    assert states[0] == "near"
    assert "missed" in states


def test_a_case_that_has_ended_is_not_watched(services):
    request_id, _ = intake.add_request(services, request())
    decide(services, request_id, Event.WITHDRAW, by="requester")
    assert watch(services.ledger, TABLE, now=RECEIVED + timedelta(days=400)).due == ()


def test_compliance_that_stopped_running_is_noticed(services):
    request_id, _ = intake.add_request(services, request("internal"))
    promoted(services, request_id)
    now = datetime.now(UTC)
    assert not watch(services.ledger, TABLE, now=now).is_compliance_late
    assert watch(services.ledger, TABLE, now=now + COMPLIANCE_EVERY + timedelta(minutes=1)).is_compliance_late
    decide(services, request_id, Event.WITHDRAW, by="requester")
    assert watch(services.ledger, TABLE, now=now + timedelta(days=30)).last_compliance is None


@pytest.mark.parametrize("recorded", [True, False])
def test_the_command_needs_nothing_but_the_ledger(tmp_path, monkeypatch, capsys, recorded):
    home = tmp_path / "home"
    services = open_services(load_settings({}, home=home))
    intake.add_request(services, request())
    monkeypatch.setenv("SCAPRE_HOME", str(home))
    monkeypatch.setenv("SCAPRE_OBJECT_STORE_URI", "s3://nowhere")
    monkeypatch.setenv("SCAPRE_MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    code = cli.run(["watchdog", "--json", *([] if recorded else ["--dry-run"])])
    said = json.loads(capsys.readouterr().out)
    assert code == ExitCode.FAILED
    assert said["is_late"]
    assert bool(services.ledger.entries(kind=EntryKind.DEADLINE_REPORTED)) is recorded
