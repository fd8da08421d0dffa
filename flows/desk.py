"""The desk: what a person decides about one request, each decision one ledger entry.

Guarantees:
    1. Every decision names who took it, and is refused where the case does not allow it.
    2. A decision that was taken before is found and not recorded again.
    3. A request that lacks what its regime asks for cannot become valid.
    4. Names and reasons stay on the chain for good: they must not tell who asked or for what.
"""

from datetime import UTC, datetime

from flows.case_states import DESK, ENDED, TRANSITIONS, Event
from flows.cases import Case, find_case
from flows.deadlines import load_deadlines
from flows.errors import BadRequestError
from flows.services import Services
from infra.chain import EntryKind
from infra.errors import LedgerError

_KIND = {event: kind for kind, event in DESK.items()}
_NEEDS_REASON = frozenset({Event.REJECT, Event.COUNTER_NOTICE, Event.UPHOLD, Event.REINSTATE})
_LONGEST = 500


def decide(services: Services, request_id: str, event: Event, *, by: str, reason: str = "") -> bool:
    """Records a decision; says whether it is new.

    Raises:
        BadRequestError: Unknown request, nobody named, a reason missing, or a step the case does not allow now.
    """
    case = find_case(services, request_id)
    kind = _KIND[event]
    if case.state not in TRANSITIONS[event][0] and case.has(kind):
        return False
    case.require(event)
    if event in _NEEDS_REASON:
        _require_text("reason", reason)
    if event == Event.VALIDATE and case.lacks:
        raise BadRequestError(
            f"expected request {request_id} to hold all that {case.regime} asks for, found it to lack "
            f"{', '.join(case.lacks)}; reject it with that reason and ask for a complete one"
        )
    if event == Event.COUNTER_NOTICE:
        _require_counter_notice(services, case)
    return _record(services, case, kind, by=by, reason=reason)


def pause(services: Services, request_id: str, *, by: str, reason: str) -> bool:
    """Stops the clock of a case, for example until the requester answers; says whether it ran until now.

    Raises:
        BadRequestError: Unknown request, nobody or no reason named, or a case that has ended.
    """
    case = find_case(services, request_id)
    if case.is_paused:
        return False
    _require_open(case, "pause")
    _require_text("reason", reason)
    return _record(services, case, EntryKind.REQUEST_PAUSED, by=by, reason=reason)


def resume(services: Services, request_id: str, *, by: str, reason: str = "") -> bool:
    """Lets the clock of a case go on; says whether it stood still until now.

    Raises:
        BadRequestError: Unknown request or nobody named.
    """
    case = find_case(services, request_id)
    if not case.is_paused:
        return False
    return _record(services, case, EntryKind.REQUEST_RESUMED, by=by, reason=reason)


def extend(services: Services, request_id: str, *, by: str, reason: str) -> bool:
    """Moves decision and effect by the regime's extension, once; says whether it is new.

    Raises:
        BadRequestError: The regime knows no extension, the decision's deadline is over, or no reason is named.
    """
    case = find_case(services, request_id)
    if case.is_extended:
        return False
    _require_open(case, "extend")
    _require_text("reason", reason)
    regime = load_deadlines(services.settings.deadlines).find(case.regime)
    if regime.extension is None:
        raise BadRequestError(f"expected a regime with an extension, found {case.regime}; its deadlines stand")
    due = next(deadline for deadline in case.deadlines if deadline.name == "decide")
    if due.state(datetime.now(UTC)) == "missed":
        raise BadRequestError(
            f"expected an extension before {due.due_at:%Y-%m-%d %H:%M} UTC, found that over; the deadline is missed"
        )
    return _record(services, case, EntryKind.REQUEST_EXTENDED, by=by, reason=reason)


def _record(services: Services, case: Case, kind: EntryKind, *, by: str, reason: str) -> bool:
    body = {"request_id": case.request_id, "by": _require_text("by", by)}
    if reason.strip():
        body["reason"] = _require_text("reason", reason)
    times = len({step.sequence for step in case.history if step.kind == kind})
    key = f"{kind}/{case.request_id}/{times}"
    try:
        services.ledger.append(kind, body, idempotency_key=key)
    except LedgerError:
        if services.ledger.find(key) is None:
            raise
        return False  # somebody else took the same decision in the same moment
    return True


def _require_text(name: str, text: str) -> str:
    stripped = text.strip()
    if not stripped or len(stripped) > _LONGEST or not stripped.isprintable():
        raise BadRequestError(
            f"{name}: expected one line of 1 to {_LONGEST} characters, found {text[:40]!r}; give --{name} TEXT"
        )
    return stripped


def _require_open(case: Case, what: str) -> None:
    if case.state in ENDED:
        raise BadRequestError(
            f"expected an open case to {what}, found {case.request_id} {case.state}; its clock has stopped"
        )


def _require_counter_notice(services: Services, case: Case) -> None:
    if load_deadlines(services.settings.deadlines).find(case.regime).counter_notice is None:
        raise BadRequestError(
            f"expected a regime with counter-notices, found {case.regime} for {case.request_id}; "
            "add `counter_notice` to its row of the table, or withdraw the request"
        )
