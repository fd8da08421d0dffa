"""Requests on record, on a real ledger."""

from pathlib import Path

import pytest

from flows import desk, intake
from flows.case_states import Event
from flows.errors import BadRequestError
from flows.requests import load_request
from flows.services import open_services
from infra.settings import load_settings

REQUEST = load_request(Path(__file__).parents[2] / "flows" / "demo_request.yaml")


@pytest.fixture
def services(tmp_path):
    return open_services(load_settings({}, home=tmp_path / "home"))


def test_the_same_request_twice_is_one_entry(services):
    first, second = intake.add_request(services, REQUEST), intake.add_request(services, REQUEST)
    assert first == (REQUEST.request_id, True)
    assert second == (REQUEST.request_id, False)
    assert [entry.kind for entry in services.ledger.entries()] == [
        "request_added",
        "request_triaged",
        "request_validated",
    ]
    assert intake.find_request(services, REQUEST.request_id).request_id == REQUEST.request_id


def test_the_ledger_names_neither_requester_nor_concept(services):
    intake.add_request(services, REQUEST)
    record = services.ledger.entries()[0].to_line()
    assert REQUEST.requester.name not in record
    assert not any(subject.concept in record for subject in REQUEST.subjects)


def test_a_withdrawn_request_is_not_in_force(services):
    request_id, _ = intake.add_request(services, REQUEST)
    assert list(intake.active_requests(services)) == [request_id]
    assert desk.decide(services, request_id, Event.WITHDRAW, by="dana")
    assert not desk.decide(services, request_id, Event.WITHDRAW, by="dana")
    assert intake.active_requests(services) == {}
    assert services.ledger.verify() == []


def test_an_unknown_request_cannot_be_withdrawn(services):
    with pytest.raises(BadRequestError, match="req-0"):
        desk.decide(services, "req-0", Event.WITHDRAW, by="dana")


def test_a_request_whose_text_was_erased_stops_the_plan_while_the_chain_verifies(services):
    request_id, _ = intake.add_request(services, REQUEST)
    assert services.personal.erase(request_id)
    assert services.ledger.verify() == []
    with pytest.raises(BadRequestError, match="erased"):
        intake.active_requests(services)
