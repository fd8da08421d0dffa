"""Decisions about requests, on a real ledger."""

from pathlib import Path

import pytest
import yaml

from flows import desk, intake
from flows.case_states import Event
from flows.cases import cases, find_case
from flows.errors import BadRequestError
from flows.requests import TakedownRequest, parse_request
from flows.services import open_services
from infra.settings import load_settings

EXAMPLE = Path(__file__).parents[2] / "flows" / "demo_request.yaml"


@pytest.fixture
def services(tmp_path):
    return open_services(load_settings({}, home=tmp_path / "home"))


def request(**changes) -> TakedownRequest:
    document = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    return parse_request({**document, **changes}, source="x")


def copyright_request(**changes) -> TakedownRequest:
    return request(
        **{
            "ground": "copyright",
            "jurisdiction": "US",
            "statements": ["good_faith", "accuracy"],
            "signature": "A. Holder",
        }
        | changes
    )


def test_only_a_valid_request_is_in_force(services):
    request_id, _ = intake.add_request(services, copyright_request())
    assert intake.active_requests(services) == {}
    assert desk.decide(services, request_id, Event.TRIAGE, by="dana")
    assert intake.active_requests(services) == {}
    assert desk.decide(services, request_id, Event.VALIDATE, by="dana")
    assert list(intake.active_requests(services)) == [request_id]


def test_our_own_request_is_valid_at_once_by_the_policys_hand(services):
    request_id, _ = intake.add_request(services, request())
    assert {step.who for step in find_case(services, request_id).history[1:]} == {intake.POLICY}
    assert list(intake.active_requests(services)) == [request_id]


def test_a_decision_taken_twice_is_one_entry(services):
    request_id, _ = intake.add_request(services, copyright_request())
    assert desk.decide(services, request_id, Event.TRIAGE, by="dana")
    before = services.ledger.entries()
    assert not desk.decide(services, request_id, Event.TRIAGE, by="eve")
    assert services.ledger.entries() == before


@pytest.mark.parametrize(
    ("changes", "lack"),
    [({"statements": ["good_faith"]}, "statement accuracy"), ({"signature": None}, "signature")],
)
def test_an_incomplete_notice_cannot_become_valid(services, changes, lack):
    request_id, _ = intake.add_request(services, copyright_request(**changes))
    assert find_case(services, request_id).lacks == (lack,)
    desk.decide(services, request_id, Event.TRIAGE, by="dana")
    with pytest.raises(BadRequestError, match=f"lack {lack}"):
        desk.decide(services, request_id, Event.VALIDATE, by="dana")
    assert desk.decide(services, request_id, Event.REJECT, by="dana", reason="incomplete")


def test_a_rejected_request_may_be_looked_at_again(services):
    request_id, _ = intake.add_request(services, copyright_request())
    desk.decide(services, request_id, Event.TRIAGE, by="dana")
    desk.decide(services, request_id, Event.REJECT, by="dana", reason="no such work")
    assert desk.decide(services, request_id, Event.TRIAGE, by="eve", reason="appeal")
    assert desk.decide(services, request_id, Event.VALIDATE, by="eve")
    assert find_case(services, request_id).is_active


def test_a_contested_request_is_given_back_once_reinstated(services):
    request_id, _ = intake.add_request(services, copyright_request())
    for event in (Event.TRIAGE, Event.VALIDATE):
        desk.decide(services, request_id, event, by="dana")
    desk.decide(services, request_id, Event.COUNTER_NOTICE, by="dana", reason="licence shown")
    assert list(intake.active_requests(services)) == [request_id]
    desk.decide(services, request_id, Event.REINSTATE, by="dana", reason="no suit filed")
    assert intake.active_requests(services) == {}


def test_a_regime_without_counter_notices_refuses_one(services):
    request_id, _ = intake.add_request(services, request())
    with pytest.raises(BadRequestError, match="regime with counter-notices"):
        desk.decide(services, request_id, Event.COUNTER_NOTICE, by="dana", reason="x")


@pytest.mark.parametrize(("by", "reason", "named"), [(" ", "x", "by"), ("dana", "", "reason"), ("d\na", "x", "by")])
def test_nobody_and_no_reason_are_refused_before_anything_is_written(services, by, reason, named):
    request_id, _ = intake.add_request(services, copyright_request())
    desk.decide(services, request_id, Event.TRIAGE, by="dana")
    before = services.ledger.entries()
    with pytest.raises(BadRequestError, match=f"^{named}: expected"):
        desk.decide(services, request_id, Event.REJECT, by=by, reason=reason)
    assert services.ledger.entries() == before


def test_the_clock_pauses_goes_on_and_is_extended_once(services):
    request_id, _ = intake.add_request(services, request(ground="privacy"))
    assert desk.pause(services, request_id, by="dana", reason="asked for identification")
    assert not desk.pause(services, request_id, by="dana", reason="again")
    assert find_case(services, request_id).is_paused
    assert desk.resume(services, request_id, by="dana")
    assert not desk.resume(services, request_id, by="dana")
    assert desk.pause(services, request_id, by="dana", reason="asked once more")
    assert desk.extend(services, request_id, by="dana", reason="complex")
    assert not desk.extend(services, request_id, by="dana", reason="complex")


def test_an_extension_is_refused_without_one_in_the_table_or_too_late(services):
    own, _ = intake.add_request(services, request())
    with pytest.raises(BadRequestError, match="regime with an extension"):
        desk.extend(services, own, by="dana", reason="x")
    late, _ = intake.add_request(services, request(ground="privacy", received_at="2020-01-01T00:00:00Z"))
    with pytest.raises(BadRequestError, match="deadline is missed"):
        desk.extend(services, late, by="dana", reason="x")


def test_one_request_by_three_ways_is_one_case(services):
    first, is_new = intake.add_request(services, request(), channel="form")
    assert is_new
    again = [
        intake.add_request(services, request(received_at="2026-02-03T04:05:06Z"), channel=c)
        for c in ("inbox", "command")
    ]
    assert again == [(first, False)] * 2
    assert list(cases(services)) == [first]


def test_a_named_regime_must_serve_the_ground(services):
    with pytest.raises(BadRequestError, match="regime: expected one that serves"):
        intake.add_request(services, request(regime="dmca"))
    with pytest.raises(BadRequestError, match="regime: expected one of"):
        intake.add_request(services, request(regime="nowhere"))
    assert services.ledger.entries() == []
