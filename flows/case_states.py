"""What states a takedown request passes through, and what may follow what.

Guarantees:
    1. The rules are one table, `TRANSITIONS`; nothing else decides whether a step is allowed.
    2. Only valid requests are in force. They stay in force once closed: what was forgotten stays forgotten.
"""

from collections.abc import Mapping
from enum import StrEnum

from infra.chain import EntryKind


class CaseState(StrEnum):
    """Where a request stands."""

    RECEIVED = "received"
    TRIAGED = "triaged"
    VALID = "valid"
    """Passed through on the way to `queued`."""
    REJECTED = "rejected"
    QUEUED = "queued"
    """In force, and in no candidate yet."""
    UNLEARNED = "unlearned"
    JUDGED = "judged"
    APPROVED = "approved"
    PROMOTED = "promoted"
    CONFIRMED = "confirmed"
    """The champion was judged again with this request, and passed."""
    CLOSED = "closed"
    """Nothing left to do; still in force."""
    WITHDRAWN = "withdrawn"
    COUNTER_NOTICED = "counter_noticed"
    """Contested; in force until upheld or reinstated."""
    REINSTATED = "reinstated"
    """What was taken down is given back by the next run."""


class Event(StrEnum):
    """What moves a case."""

    TRIAGE = "triage"
    VALIDATE = "validate"
    REJECT = "reject"
    WITHDRAW = "withdraw"
    COUNTER_NOTICE = "counter-notice"
    UPHOLD = "uphold"
    REINSTATE = "reinstate"
    CLOSE = "close"
    BUILT = "built"
    JUDGED = "judged"
    APPROVED = "approved"
    DECLINED = "declined"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    REVERIFIED = "reverified, passed"
    REGRESSED = "reverified, failed"


_S = CaseState
_WORKED_ON = frozenset({_S.QUEUED, _S.UNLEARNED, _S.JUDGED, _S.APPROVED})
_IN_EFFECT = frozenset({_S.PROMOTED, _S.CONFIRMED, _S.CLOSED})
ACTIVE = _WORKED_ON | _IN_EFFECT | {_S.VALID, _S.COUNTER_NOTICED}
"""States in which a request is in force: every run unlearns it."""
ENDED = frozenset({_S.REJECTED, _S.WITHDRAWN, _S.REINSTATED, _S.CLOSED})
"""States in which nobody waits for anything; retention of personal data runs from here."""

TRANSITIONS: Mapping[Event, tuple[frozenset[CaseState], CaseState]] = {
    Event.TRIAGE: (frozenset({_S.RECEIVED, _S.REJECTED}), _S.TRIAGED),
    Event.VALIDATE: (frozenset({_S.TRIAGED}), _S.VALID),
    Event.REJECT: (frozenset({_S.TRIAGED}), _S.REJECTED),
    Event.WITHDRAW: (ACTIVE - {_S.VALID} | {_S.RECEIVED, _S.TRIAGED}, _S.WITHDRAWN),
    Event.COUNTER_NOTICE: (_WORKED_ON | _IN_EFFECT, _S.COUNTER_NOTICED),
    Event.UPHOLD: (frozenset({_S.COUNTER_NOTICED}), _S.QUEUED),  # or as far as it has come meanwhile
    Event.REINSTATE: (frozenset({_S.COUNTER_NOTICED}), _S.REINSTATED),
    Event.CLOSE: (frozenset({_S.CONFIRMED}), _S.CLOSED),
    Event.BUILT: (_WORKED_ON, _S.UNLEARNED),
    Event.JUDGED: (frozenset({_S.QUEUED, _S.UNLEARNED, _S.JUDGED}), _S.JUDGED),
    Event.APPROVED: (frozenset({_S.UNLEARNED, _S.JUDGED}), _S.APPROVED),
    Event.DECLINED: (frozenset({_S.APPROVED}), _S.JUDGED),
    Event.PROMOTED: (_WORKED_ON, _S.PROMOTED),
    Event.ROLLED_BACK: (_IN_EFFECT, _S.JUDGED),
    Event.REVERIFIED: (frozenset({_S.PROMOTED}), _S.CONFIRMED),
    Event.REGRESSED: (frozenset({_S.CONFIRMED, _S.CLOSED}), _S.PROMOTED),
}
"""For every event, the states in which it may happen and the state that follows; anything else is refused."""

DESK: Mapping[EntryKind, Event] = {
    EntryKind.REQUEST_TRIAGED: Event.TRIAGE,
    EntryKind.REQUEST_VALIDATED: Event.VALIDATE,
    EntryKind.REQUEST_REJECTED: Event.REJECT,
    EntryKind.REQUEST_WITHDRAWN: Event.WITHDRAW,
    EntryKind.REQUEST_COUNTER_NOTICED: Event.COUNTER_NOTICE,
    EntryKind.REQUEST_UPHELD: Event.UPHOLD,
    EntryKind.REQUEST_REINSTATED: Event.REINSTATE,
    EntryKind.REQUEST_CLOSED: Event.CLOSE,
}
"""What people do with one request, by ledger entry."""
PIPELINE: Mapping[EntryKind, Event] = {
    EntryKind.CANDIDATE_BUILT: Event.BUILT,
    EntryKind.JUDGED: Event.JUDGED,
    EntryKind.APPROVED: Event.APPROVED,
    EntryKind.DECLINED: Event.DECLINED,
    EntryKind.PROMOTED: Event.PROMOTED,
}
"""What the pipeline does with many requests at once, by ledger entry; a re-verification counts by its verdict."""
NEXT_STEP = {
    _S.RECEIVED: "triage it",
    _S.TRIAGED: "validate or reject it",
    _S.REJECTED: "triage it again if the requester appeals",
    _S.WITHDRAWN: "a new request needs another `reference`",
    _S.COUNTER_NOTICED: "uphold or reinstate it",
    _S.REINSTATED: "a new request needs another `reference`",
    _S.PROMOTED: "let the compliance flow confirm it",
    _S.CONFIRMED: "close it",
}
"""What somebody can do about a case, for messages."""
