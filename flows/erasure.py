"""Personal data goes when its time is over: who asked, and the files they dropped.

Guarantees:
    1. Data goes first, the ledger's entry follows: the chain never claims an erasure that did not happen.
    2. What a request in force still needs, what must go and what must survive, stays; of any other nothing stays.
    3. The chain verifies before and after: it never held the data.
    4. Killed anywhere, the next run finishes; run again, it does nothing.
"""

from datetime import UTC, datetime

from flows.cases import Case, cases
from flows.deadlines import DeadlineTable, load_deadlines
from flows.inbox import TAKEN, reason_key, refused_files
from flows.intake import parts_of
from flows.services import Services
from infra.chain import EntryKind


def due_cases(services: Services, *, now: datetime) -> list[Case]:
    """Returns the cases whose personal data has outlived what the table of deadlines allows."""
    table = load_deadlines(services.settings.deadlines)
    return [case for case in cases(services).values() if _is_due(case, table, now)]


def erase_due(services: Services, *, now: datetime | None = None) -> list[str]:
    """Erases what is due and returns the identifiers of the requests concerned."""
    moment = now or datetime.now(UTC)
    erased = [erase(services, case) for case in due_cases(services, now=moment)]
    keep = load_deadlines(services.settings.deadlines).keep_refused
    for key, refused_at in refused_files(services):
        if keep.after(refused_at) <= moment:
            services.store.discard(key)
            services.store.discard(reason_key(key))
    return erased


def erase(services: Services, case: Case) -> str:
    """Erases the personal data of one case and records it; returns the identifier."""
    request_id, subject = case.request_id, f"{case.request_id}/subject"
    remaining = {}
    if case.is_active:
        remaining[subject] = case.commitments.get(subject) or _keep_subject(services, request_id)
    else:
        services.personal.erase(subject)
    services.personal.erase(request_id)
    for key in services.store.list_keys(f"{TAKEN}{request_id}/"):
        services.store.discard(key)
    services.ledger.append(
        EntryKind.PERSONAL_DATA_ERASED,
        {"request_id": request_id, "by": "policy", "regime": case.regime, "remaining": remaining},
        # one that is withdrawn later loses the rest, which is another effect
        idempotency_key=f"{EntryKind.PERSONAL_DATA_ERASED}/{request_id}/{'part' if remaining else 'all'}",
    )
    return request_id


def _is_due(case: Case, table: DeadlineTable, now: datetime) -> bool:
    if case.ended_at is None or table.find(case.regime).keep_personal_data.after(case.ended_at) > now:
        return False
    return not case.is_erased or (bool(case.commitments) and not case.is_active)


def _keep_subject(services: Services, request_id: str) -> str:
    """Parts a record of before requests were kept in two; a killed run may have done so already."""
    subject = f"{request_id}/subject"
    whole = services.personal.find(request_id)
    kept = services.personal.find(subject) if whole is None else parts_of(request_id, whole)[subject]
    return services.personal.keep(subject, kept or {})
