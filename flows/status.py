"""Where everything stands, in one record: champion, cases, deadlines, verdicts, incidents, and what waits for whom.

Guarantees:
    1. It is read off the ledger and the registry, and changes neither.
    2. No concept and no requester is named.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from flows.case_states import CaseState
from flows.cases import Case, fold_cases
from flows.deadlines import load_deadlines
from flows.decisions import requests_of, waiting_candidates
from flows.incidents import list_incidents
from flows.services import Services
from infra.chain import Entry, EntryKind
from infra.registry import ModelVersion

VERDICTS_SHOWN = 3


@dataclass(frozen=True)
class Waiting:
    """Requests that wait for somebody."""

    whom: str
    """The desk, the approver, the operator, the compliance flow."""
    what: str
    request_ids: tuple[str, ...]


@dataclass(frozen=True)
class Due:
    """A deadline that is near or missed."""

    request_id: str
    name: str
    due_at: str
    state: str


@dataclass(frozen=True)
class Said:
    """A judgement of late."""

    at: str
    kind: str
    verdict: str
    digest: str
    requests: int


@dataclass(frozen=True)
class Status:
    """One screen."""

    at: str
    champion: dict[str, Any] | None
    candidate: dict[str, Any] | None
    active: int
    """Requests in force."""
    concepts: int
    """Concepts that they name, counted by request."""
    states: dict[str, int]
    due: tuple[Due, ...]
    verdicts: tuple[Said, ...]
    waiting: tuple[Waiting, ...]
    incidents: tuple[dict[str, Any], ...]
    entries: int
    faults: int
    """Of the ledger."""

    def describe(self) -> dict[str, Any]:
        """Returns the status as JSON-able values."""
        return asdict(self)


def read_status(services: Services, *, now: datetime | None = None) -> Status:
    """Returns where everything stands."""
    moment = now or datetime.now(UTC)
    entries = services.ledger.entries()
    found = fold_cases(entries, load_deadlines(services.settings.deadlines))
    active = [case for case in found.values() if case.is_active]
    registry = services.open_registry()
    approvals = tuple(_approvals(services))
    asked_for = {request_id for waiting in approvals for request_id in waiting.request_ids}
    incidents = [incident for incident in list_incidents(services) if incident.is_open]
    return Status(
        at=moment.isoformat(timespec="seconds"),
        champion=_model(registry.champion(), entries),
        candidate=_model(registry.candidate(), entries),
        active=len(active),
        concepts=sum(case.concepts for case in active),
        states=dict(Counter(str(case.state) for case in found.values())),
        due=tuple(_due(found.values(), moment)),
        verdicts=tuple(_verdicts(entries)),
        waiting=(*approvals, *waiting_for(case for case in found.values() if case.request_id not in asked_for)),
        incidents=tuple({"incident_id": i.incident_id, "opened_at": i.opened_at} for i in incidents),
        entries=len(entries),
        faults=len(services.ledger.verify()),
    )


def waiting_for(cases: Iterable[Case]) -> list[Waiting]:
    """Returns who has to do what next, and for which requests."""
    found: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        if turn := _turn(case):
            found.setdefault(turn, []).append(case.request_id)
    return [Waiting(whom, what, tuple(ids)) for (whom, what), ids in found.items()]


def _approvals(services: Services) -> Iterator[Waiting]:
    for candidate in waiting_candidates(services):
        digest = str(candidate.judged.body["digest"])
        what = f"`scapre approve {digest[:16]}` or `scapre decline`"
        yield Waiting("approver", what, tuple(requests_of(services, candidate.judged)))


def _turn(case: Case) -> tuple[str, str] | None:
    if case.is_paused:
        return "requester", "answer; the clock is paused"
    if case.state == CaseState.JUDGED:
        if case.verdict in (None, "passed"):
            return "approver", "approve or decline"
        return "operator", f"the last verdict was {case.verdict}: change dials or policy, or withdraw"
    return _TURNS.get(case.state)


_TURNS: dict[CaseState, tuple[str, str]] = {
    CaseState.RECEIVED: ("desk", "triage"),
    CaseState.TRIAGED: ("desk", "validate or reject"),
    CaseState.COUNTER_NOTICED: ("desk", "uphold or reinstate"),
    CaseState.CONFIRMED: ("desk", "close"),
    CaseState.QUEUED: ("next run", "unlearn: `scapre takedown run`"),
    CaseState.UNLEARNED: ("next run", "judge: `scapre takedown run` goes on"),
    CaseState.APPROVED: ("promotion", "promote what was approved"),
    CaseState.PROMOTED: ("compliance", "confirm: `scapre compliance run`"),
}


def _due(cases: Iterable[Case], now: datetime) -> list[Due]:
    late = [
        (deadline.due_at, Due(case.request_id, deadline.name, deadline.due_at.isoformat(), concern))
        for case in cases
        if case.ended_at is None
        for deadline in case.deadlines
        if (concern := deadline.concern(now))
    ]
    return [due for _, due in sorted(late, key=lambda pair: pair[0])]


def _verdicts(entries: Iterable[Entry]) -> list[Said]:
    kinds = (EntryKind.JUDGED, EntryKind.REVERIFIED, EntryKind.RELEASE_JUDGED)
    judged = [entry for entry in entries if entry.kind in kinds and "verdict" in entry.body]
    return [
        Said(
            entry.at,
            entry.kind,
            str(entry.body["verdict"]),
            str(entry.body.get("digest", "")),
            len(entry.body.get("request_ids", ())),
        )
        for entry in reversed(judged[-VERDICTS_SHOWN:])
    ]


def _model(version: ModelVersion | None, entries: Iterable[Entry]) -> dict[str, Any] | None:
    if version is None:
        return None
    moved = [
        entry
        for entry in entries
        if entry.kind in (EntryKind.PROMOTED, EntryKind.ROLLED_BACK) and entry.body.get("digest") == version.digest
    ]
    since = {"since": moved[-1].at, "requests": len(moved[-1].body.get("request_ids", ()))} if moved else {}
    return {"version": version.version, "digest": version.digest, **since}
