"""The watchdog: what is due, what is late, and whether compliance still runs.

Guarantees:
    1. It reads the ledger's database and the table of deadlines, and needs nothing else: no flow, no server, no object
       store, no registry. A pipeline that stands still is what it is there to notice.
    2. Each deadline is reported once when it is near and once when it is missed; moved, it is reported anew.
    3. What was reported before is still said: silence means that nothing is late.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from flows.cases import Case, fold_cases
from flows.deadlines import DeadlineTable
from infra.chain import Entry, EntryKind
from infra.ledger import Ledger

COMPLIANCE_EVERY = timedelta(hours=26)
"""The schedule of the compliance deployment, once a day, and two hours for a run."""


@dataclass(frozen=True)
class Due:
    """One deadline that somebody must look at."""

    request_id: str
    deadline: str
    state: Literal["near", "missed"]
    due_at: datetime
    stands_at: str
    """State of the case."""
    is_new: bool
    """Whether it was not reported before."""


@dataclass(frozen=True)
class Watch:
    """What the watchdog saw."""

    due: tuple[Due, ...]
    """Missed first, then by date."""
    last_compliance: datetime | None
    """When the champion was last judged anew, or promoted; None when there is nothing that could be."""
    is_compliance_late: bool

    @property
    def is_late(self) -> bool:
        """Whether anything is missed."""
        return self.is_compliance_late or any(each.state == "missed" for each in self.due)


def watch(
    ledger: Ledger, table: DeadlineTable, *, now: datetime, compliance_every: timedelta = COMPLIANCE_EVERY
) -> Watch:
    """Returns what is due and late at a moment; changes nothing."""
    entries = ledger.entries()
    cases = fold_cases(entries, table)
    known = {entry.idempotency_key for entry in entries if entry.kind == EntryKind.DEADLINE_REPORTED}
    due = [each for case in cases.values() if case.ended_at is None for each in _due(case, now, known)]
    last = _last_compliance(entries, cases)
    return Watch(
        due=tuple(sorted(due, key=lambda each: (each.state != "missed", each.due_at, each.request_id))),
        last_compliance=last,
        is_compliance_late=last is not None and now - last > compliance_every,
    )


def report(ledger: Ledger, seen: Watch) -> int:
    """Records what is due and was not reported before; returns how many entries that made."""
    new = [each for each in seen.due if each.is_new]
    for each in new:
        body = {
            "request_id": each.request_id,
            "deadline": each.deadline,
            "state": each.state,
            "due_at": each.due_at.isoformat(),
        }
        ledger.append(
            EntryKind.DEADLINE_REPORTED,
            body,
            idempotency_key=_key(each.request_id, each.deadline, each.state, each.due_at),
        )
    return len(new)


def _due(case: Case, now: datetime, known: set[str | None]) -> list[Due]:
    found = []
    for deadline in case.deadlines:
        state = deadline.concern(now)
        if state is None:
            continue
        is_new = _key(case.request_id, deadline.name, state, deadline.due_at) not in known
        found.append(Due(case.request_id, deadline.name, state, deadline.due_at, case.state, is_new))
    return found


def _last_compliance(entries: Iterable[Entry], cases: dict[str, Case]) -> datetime | None:
    last, is_needed = None, False
    for entry in entries:
        if entry.kind in (EntryKind.PROMOTED, EntryKind.ROLLED_BACK):
            covered = entry.body.get("request_ids", ())
            is_needed = any(request_id in cases and cases[request_id].is_active for request_id in covered)
            last = entry.at
        elif entry.kind == EntryKind.REVERIFIED:
            last = entry.at
    return datetime.fromisoformat(last).astimezone(UTC) if last and is_needed else None


def _key(request_id: str, deadline: str, state: str, due_at: datetime) -> str:
    return f"deadline/{request_id}/{deadline}/{state}/{due_at.isoformat()}"
