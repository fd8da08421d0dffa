"""Personal data goes when its time is over, and the chain verifies all the same."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from flows import desk, erasure, inbox, intake
from flows.case_states import Event
from flows.cases import find_case
from flows.errors import BadRequestError
from flows.requests import ERASED, load_request, parse_request
from flows.services import open_services
from infra.chain import EntryKind
from infra.settings import load_settings

EXAMPLE = Path(__file__).parents[2] / "flows" / "demo_request.yaml"
REQUEST = load_request(EXAMPLE)
LATER = datetime.now(UTC) + timedelta(days=800)


@pytest.fixture
def services(tmp_path):
    return open_services(load_settings({}, home=tmp_path / "home"))


def close(services, request_id: str) -> None:
    facts = {"key": "k", "digest": "d" * 64, "request_ids": [request_id]}
    services.ledger.append(EntryKind.CANDIDATE_BUILT, facts)
    services.ledger.append(EntryKind.PROMOTED, facts)
    services.ledger.append(EntryKind.REVERIFIED, {**facts, "verdict": "passed"})
    assert desk.decide(services, request_id, Event.CLOSE, by="dana")


def everything_stored(services) -> bytes:
    return b"".join(path.read_bytes() for path in services.settings.home.rglob("*") if path.is_file())


def test_of_a_closed_request_what_must_go_stays_and_who_asked_goes(services):
    services.store.put_bytes("inbox/a.yaml", EXAMPLE.read_bytes())
    inbox.take_in(services)
    request_id = REQUEST.request_id
    close(services, request_id)
    assert REQUEST.requester.contact.encode() in everything_stored(services)
    assert erasure.erase_due(services) == []
    assert erasure.erase_due(services, now=LATER) == [request_id]
    assert REQUEST.requester.contact.encode() not in everything_stored(services)
    assert services.ledger.verify() == []
    read = intake.active_requests(services)[request_id]
    assert read.requester == ERASED
    assert {subject.concept for subject in read.subjects} == {subject.concept for subject in REQUEST.subjects}


def test_of_a_withdrawn_request_nothing_stays(services):
    request_id, _ = intake.add_request(services, REQUEST)
    desk.decide(services, request_id, Event.WITHDRAW, by="dana")
    assert erasure.erase_due(services, now=LATER) == [request_id]
    with pytest.raises(BadRequestError, match="erased on schedule"):
        intake.find_request(services, request_id)
    assert services.personal.find(f"{request_id}/subject") is None


def test_a_request_withdrawn_after_its_erasure_loses_the_rest(services):
    request_id, _ = intake.add_request(services, REQUEST)
    close(services, request_id)
    erasure.erase_due(services, now=LATER)
    desk.decide(services, request_id, Event.WITHDRAW, by="dana")
    assert erasure.erase_due(services, now=LATER) == [request_id]
    assert services.personal.find(f"{request_id}/subject") is None
    assert erasure.erase_due(services, now=LATER) == []


def test_an_erasure_twice_or_cut_off_is_one_entry(services, monkeypatch):
    request_id, _ = intake.add_request(services, REQUEST)
    close(services, request_id)

    def cut(*_arguments, **_options):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(type(services.ledger), "append", cut)
        with pytest.raises(OSError, match="killed"):
            erasure.erase_due(services, now=LATER)
    assert not find_case(services, request_id).is_erased
    assert erasure.erase_due(services, now=LATER) == [request_id]
    assert erasure.erase_due(services, now=LATER) == []
    assert len(services.ledger.entries(kind=EntryKind.PERSONAL_DATA_ERASED)) == 1


def test_a_record_of_the_first_kind_is_parted_before_it_is_erased(services):
    document = {
        "received": "2026-01-05",
        "ground": "internal",
        "jurisdiction": "EU",
        "requester": {"name": "A", "role": "artist", "contact": "a@example.org"},
        "subjects": [{"concept": "rose", "kind": "object"}],
    }
    old = parse_request(document, source="x")
    request_id = old.request_id
    body = {"request_id": request_id, "base": "reference", "ground": "internal", "jurisdiction": "EU", "concepts": 1}
    commitment = services.personal.keep(request_id, old.identity())
    services.ledger.append(EntryKind.REQUEST_ADDED, {**body, "commitment": commitment, "received": "2026-01-05"})
    assert intake.active_requests(services)[request_id] == parse_request(old.identity(), source="x")
    close(services, request_id)
    erasure.erase_due(services, now=LATER)
    assert intake.active_requests(services)[request_id].subjects == old.subjects
    assert b"a@example.org" not in everything_stored(services)


def test_an_open_case_keeps_its_data(services):
    document = {**yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")), "ground": "privacy"}
    intake.add_request(services, parse_request(document, source="x"))
    assert erasure.erase_due(services, now=LATER) == []


def test_a_refused_file_goes_after_its_time(services):
    services.store.put_bytes("inbox/a.yaml", b"contact: a@example.org\n")
    inbox.take_in(services)
    erasure.erase_due(services)
    assert len(services.store.list_keys("inbox-refused/")) == 2
    erasure.erase_due(services, now=LATER)
    assert services.store.list_keys("inbox-refused/") == []
