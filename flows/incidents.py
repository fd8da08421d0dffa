"""Incidents: what is wrong with the model in production, opened by a flow and closed by a named person.

Guarantees:
    1. The ledger is the record; the event and the tag of the model version follow from it and can be repeated.
    2. The same finding about the same model is one incident while it is open; found again after it was closed, it is a
       new one.
    3. No concept is named: reasons speak of subjects as `REQUEST#NUMBER`.
"""

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flows.errors import BadRequestError
from flows.services import Services
from infra.chain import EntryKind
from infra.digests import canonical_json, sha256_bytes
from infra.registry import Registry

OPENED_EVENT = "scapre.incident.opened"
INCIDENT_TAG = "scapre.incident"


@dataclass(frozen=True)
class Incident:
    """One incident as the ledger tells it."""

    incident_id: str
    digest: str
    """Of the model that it is about."""
    reasons: tuple[str, ...]
    request_ids: tuple[str, ...]
    opened_at: str
    closed_at: str | None = None
    closed_by: str | None = None
    closing_reason: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether nobody has closed it yet."""
        return self.closed_at is None


def list_incidents(services: Services) -> list[Incident]:
    """Returns every incident, oldest first."""
    found: dict[str, Incident] = {}
    for entry in services.ledger.entries(kind=EntryKind.INCIDENT_OPENED):
        body = entry.body
        found[body["incident_id"]] = Incident(
            body["incident_id"], body["digest"], tuple(body["reasons"]), tuple(body["request_ids"]), entry.at
        )
    for entry in services.ledger.entries(kind=EntryKind.INCIDENT_CLOSED):
        body = entry.body
        found[body["incident_id"]] = replace(
            found[body["incident_id"]], closed_at=entry.at, closed_by=body["by"], closing_reason=body["reason"]
        )
    return list(found.values())


def open_incident(
    services: Services,
    *,
    found_at: str,
    digest: str,
    findings: Sequence[str],
    reasons: Sequence[str],
    request_ids: Sequence[str],
) -> Incident:
    """Records an incident, or returns the one about the same findings that was not closed before they were made.

    Args:
        services: The adapters.
        found_at: When the findings were made, ISO 8601 in UTC, as the ledger writes it.
        digest: The model.
        findings: What was found, as opaque identities; their set is the incident's.
        reasons: The same for people, without concepts.
        request_ids: Requests concerned.
    """
    earlier = {each.incident_id: each for each in list_incidents(services)}
    rounds = (_identify(digest, findings, number) for number in itertools.count())
    incident_id = next(
        each for each in rounds if each not in earlier or (earlier[each].closed_at or found_at) >= found_at
    )
    if incident_id in earlier:
        return earlier[incident_id]
    body = {
        "incident_id": incident_id,
        "digest": digest,
        "reasons": list(reasons),
        "request_ids": sorted(request_ids),
    }
    entry = services.ledger.append(EntryKind.INCIDENT_OPENED, body, idempotency_key=f"incident/{incident_id}/opened")
    return Incident(incident_id, digest, tuple(reasons), tuple(sorted(request_ids)), entry.at)


def announce(incident: Incident, registry: Registry, *, version: str | None) -> None:
    """Tags the model version and emits the Prefect event; both are safe to repeat."""
    from prefect.events import emit_event

    if version is not None:
        registry.tag_version(version, {INCIDENT_TAG: incident.incident_id})
    emit_event(
        OPENED_EVENT,
        resource={"prefect.resource.id": f"scapre.incident.{incident.incident_id}"},
        payload={
            "incident": incident.incident_id,
            "digest": incident.digest,
            "version": version,
            "reasons": list(incident.reasons),
            "requests": list(incident.request_ids),
        },
        id=uuid.uuid5(uuid.NAMESPACE_URL, f"{OPENED_EVENT}/{incident.incident_id}"),  # repeated, it is the same event
    )


def close_incident(services: Services, registry: Registry, incident_id: str, *, by: str, reason: str) -> bool:
    """Closes an incident and takes the tag off the version; says whether it was open until now.

    Raises:
        BadRequestError: There is no such incident, or name or reason is empty.
    """
    incidents = {each.incident_id: each for each in list_incidents(services)}
    if incident_id not in incidents:
        raise BadRequestError(f"expected an incident, found {incident_id!r}; `scapre incident list` lists them")
    if not (by.strip() and reason.strip()):
        raise BadRequestError("expected who closes the incident and why, found an empty answer; give --by and --reason")
    was_open = incidents[incident_id].is_open
    if was_open:
        services.ledger.append(
            EntryKind.INCIDENT_CLOSED,
            {"incident_id": incident_id, "by": by.strip(), "reason": reason.strip()},
            idempotency_key=f"incident/{incident_id}/closed",
        )
    for version in registry.versions():
        if version.tags.get(INCIDENT_TAG) == incident_id:
            registry.tag_version(version.version, {INCIDENT_TAG: ""})
    return was_open


def _identify(digest: str, findings: Sequence[str], round_number: int) -> str:
    record = {"digest": digest, "findings": sorted(set(findings)), "round": round_number}
    return f"inc-{sha256_bytes(canonical_json(record))[:16]}"
