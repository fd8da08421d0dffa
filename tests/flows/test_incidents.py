"""Incidents against a real ledger and registry on SQLite."""

from datetime import UTC, datetime

import pytest

from flows import incidents
from flows.errors import BadRequestError
from flows.services import open_services
from infra.chain import EntryKind
from infra.settings import load_settings


@pytest.fixture
def services(tmp_path):
    return open_services(load_settings({}, home=tmp_path / "home"))


def opened(services, *findings: str, found_at: str = "") -> incidents.Incident:
    found_at = found_at or datetime.now(UTC).isoformat(timespec="microseconds")
    return incidents.open_incident(
        services, found_at=found_at, digest="1" * 64, findings=findings, reasons=list(findings), request_ids=["req-1"]
    )


def test_the_same_findings_are_one_incident_while_it_is_open(services):
    assert opened(services, "a", "b") == opened(services, "b", "a")
    assert opened(services, "a").incident_id != opened(services, "a", "b").incident_id
    assert len(services.ledger.entries(kind=EntryKind.INCIDENT_OPENED)) == 2


def test_found_again_after_it_was_closed_it_is_a_new_one(services):
    registry = services.open_registry()
    version = registry.register(source="file:///x", digest="1" * 64)
    first = opened(services, "a")
    incidents.announce(first, registry, version=version.version)
    assert registry.version(version.version).tags[incidents.INCIDENT_TAG] == first.incident_id
    assert incidents.close_incident(services, registry, first.incident_id, by="officer", reason="rolled back")
    assert registry.version(version.version).tags[incidents.INCIDENT_TAG] == ""
    assert not incidents.close_incident(services, registry, first.incident_id, by="another", reason="again")
    assert opened(services, "a", found_at=first.opened_at).incident_id == first.incident_id  # the finding it was about
    second = opened(services, "a")
    assert second.incident_id != first.incident_id
    assert [each.is_open for each in incidents.list_incidents(services)] == [False, True]
    assert incidents.list_incidents(services)[0].closed_by == "officer"
    assert services.ledger.verify() == []


@pytest.mark.parametrize(("by", "reason"), [(" ", "done"), ("officer", "")])
def test_nobody_closes_without_name_and_reason(services, by, reason):
    incident = opened(services, "a")
    with pytest.raises(BadRequestError, match="--by and --reason"):
        incidents.close_incident(services, services.open_registry(), incident.incident_id, by=by, reason=reason)
    assert incidents.list_incidents(services)[0].is_open


def test_an_incident_that_is_not_there_is_refused(services):
    with pytest.raises(BadRequestError, match="inc-0"):
        incidents.close_incident(services, services.open_registry(), "inc-0", by="officer", reason="done")
