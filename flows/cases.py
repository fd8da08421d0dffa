"""Cases: where each takedown request stands, read off the ledger and stored nowhere else.

Guarantees:
    1. A case is a fold over ledger entries: the same entries give the same case, whoever reads them.
    2. What `case_states.TRANSITIONS` does not allow is refused with the state expected, the state found and what to do;
       an entry that stands in the ledger all the same does not count.
    3. A request recorded before requests had to be validated counts as valid, so that an upgrade drops none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from flows.case_states import ACTIVE, DESK, ENDED, NEXT_STEP, PIPELINE, TRANSITIONS, CaseState, Event
from flows.deadlines import Clock, Deadline, DeadlineName, DeadlineTable, Pause, deadlines_of, load_deadlines
from flows.errors import BadRequestError
from flows.services import Services
from infra.chain import Entry, EntryKind

_MET_BY: Mapping[Event, tuple[DeadlineName, ...]] = {
    Event.TRIAGE: ("acknowledge",),
    Event.VALIDATE: ("decide",),
    Event.REJECT: ("decide", "effect"),
    Event.PROMOTED: ("effect",),
    Event.WITHDRAW: ("acknowledge", "decide", "effect", "put_back_earliest", "put_back_latest"),
    Event.REINSTATE: ("put_back_earliest", "put_back_latest", "effect"),
    Event.UPHOLD: ("put_back_earliest", "put_back_latest"),
}
"""Deadlines that an event meets."""


@dataclass(frozen=True)
class Step:
    """One entry in the life of a case."""

    sequence: int
    kind: str
    at: datetime
    who: str
    state: CaseState
    """The state after it."""
    reason: str = ""


@dataclass(frozen=True)
class Case:
    """One request and where it stands."""

    request_id: str
    state: CaseState
    regime: str
    ground: str
    jurisdiction: str
    base: str
    concepts: int
    received_at: datetime
    channel: str
    lacks: tuple[str, ...]
    """What the regime asks of the request and it did not hold when it came in."""
    history: tuple[Step, ...]
    deadlines: tuple[Deadline, ...]
    is_paused: bool
    is_extended: bool
    digest: str | None
    """Of the newest candidate that it is in."""
    verdict: str | None
    """Of the newest judgement that it is in."""
    commitments: Mapping[str, str]
    """Of the records beside the ledger, by name of the record."""
    is_erased: bool
    """Whether its personal data was erased."""

    @property
    def is_active(self) -> bool:
        """Whether the request is in force, so that every run unlearns it."""
        return self.state in ACTIVE

    @property
    def ended_at(self) -> datetime | None:
        """When the case came to the end it is at, or None while it is open."""
        return self.history[-1].at if self.state in ENDED else None

    def has(self, kind: EntryKind) -> bool:
        """Says whether an entry of that kind is part of the case."""
        return any(step.kind == kind for step in self.history)

    def require(self, event: Event) -> None:
        """Refuses an event that may not happen now.

        Raises:
            BadRequestError: With the states expected, the state found and what to do next.
        """
        allowed, _ = TRANSITIONS[event]
        if self.state not in allowed:
            raise BadRequestError(
                f"expected request {self.request_id} to be {' or '.join(sorted(allowed))} for {event}, "
                f"found it {self.state}; {NEXT_STEP.get(self.state, 'see `scapre request show`')}"
            )


@dataclass
class _Draft:
    """A case while the ledger is read."""

    added: Entry
    stage: CaseState
    history: list[Step]
    is_contested: bool = False
    pauses: list[Pause] = field(default_factory=list)
    is_extended: bool = False
    contested_at: datetime | None = None
    met: dict[DeadlineName, datetime] = field(default_factory=dict)
    digest: str | None = None
    verdict: str | None = None
    commitments: dict[str, str] = field(default_factory=dict)
    is_erased: bool = False

    @property
    def state(self) -> CaseState:
        return CaseState.COUNTER_NOTICED if self.is_contested else self.stage

    def note(self, entry: Entry, body: Mapping[str, Any], *, state: CaseState | None = None) -> None:
        who = str(body.get("by") or body.get("approver") or "pipeline")
        reason = str(body.get("reason") or "")
        self.history.append(Step(entry.sequence, entry.kind, _moment(entry.at), who, state or self.state, reason))

    def move(self, event: Event, at: datetime, *, found: CaseState) -> bool:
        """Applies an event if the table allows it in the state found; says whether it did."""
        allowed, target = TRANSITIONS[event]
        if found not in allowed:
            return False
        if event == Event.COUNTER_NOTICE:
            self.is_contested, self.contested_at = True, at
        elif event in (Event.UPHOLD, Event.REINSTATE, Event.WITHDRAW):
            self.is_contested = False
        if event not in (Event.COUNTER_NOTICE, Event.UPHOLD):  # those two leave it as far as it has come
            self.stage = CaseState.QUEUED if target == CaseState.VALID else target
        for name in _MET_BY.get(event, ()):
            self.met.setdefault(name, at)
        return True


def cases(services: Services) -> dict[str, Case]:
    """Returns every request on record by identifier, in the order in which they were recorded."""
    return fold_cases(services.ledger.entries(), load_deadlines(services.settings.deadlines))


def find_case(services: Services, request_id: str) -> Case:
    """Returns one case.

    Raises:
        BadRequestError: There is no request of that identifier.
    """
    found = cases(services).get(request_id)
    if found is None:
        raise BadRequestError(
            f"expected the identifier of a recorded request, found {request_id!r}; `scapre request list` lists them"
        )
    return found


def fold_cases(entries: Iterable[Entry], table: DeadlineTable) -> dict[str, Case]:
    """Returns the cases that ledger entries tell of; pure, so that an exported ledger gives them too."""
    drafts: dict[str, _Draft] = {}
    built: dict[str, list[str]] = {}
    for entry in entries:
        body = entry.body
        if entry.kind == EntryKind.REQUEST_ADDED:
            drafts[body["request_id"]] = _opened(entry, body)
        elif "request_id" in body:
            if draft := drafts.get(body["request_id"]):
                _by_desk(draft, entry, body)
        elif entry.kind in PIPELINE or entry.kind in (EntryKind.REVERIFIED, EntryKind.ROLLED_BACK):
            if entry.kind == EntryKind.CANDIDATE_BUILT:
                built[body.get("key", "")] = body.get("request_ids", [])
            concerned = body.get("request_ids", built.get(body.get("key", ""), ()))
            _by_pipeline(drafts, entry, body, set(concerned))
    return {request_id: _closed_draft(draft, table) for request_id, draft in drafts.items()}


def _opened(entry: Entry, body: Mapping[str, Any]) -> _Draft:
    # entries without a format were written when adding a request put it in force
    is_in_force = "format" not in body
    draft = _Draft(entry, CaseState.QUEUED if is_in_force else CaseState.RECEIVED, [])
    request_id = body["request_id"]
    draft.commitments[request_id] = body["commitment"]
    if "subject_commitment" in body:
        draft.commitments[f"{request_id}/subject"] = body["subject_commitment"]
    draft.note(entry, {"by": body.get("by", "requester"), **body})
    return draft


def _by_desk(draft: _Draft, entry: Entry, body: Mapping[str, Any]) -> None:
    at = _moment(entry.at)
    if event := DESK.get(entry.kind):
        if not draft.move(event, at, found=draft.state):
            return
        if event == Event.VALIDATE:
            draft.note(entry, body, state=CaseState.VALID)
    elif entry.kind == EntryKind.REQUEST_PAUSED:
        draft.pauses.append(Pause(at, None))
    elif entry.kind == EntryKind.REQUEST_RESUMED and draft.pauses:
        draft.pauses[-1] = Pause(draft.pauses[-1].begun, at)
    elif entry.kind == EntryKind.REQUEST_EXTENDED:
        draft.is_extended = True
    else:
        if entry.kind == EntryKind.PERSONAL_DATA_ERASED:  # no step of the case: its end stays where it was
            draft.is_erased, draft.commitments = True, dict(body.get("remaining", {}))
        return
    draft.note(entry, {"by": "desk", **body})


def _by_pipeline(drafts: Mapping[str, _Draft], entry: Entry, body: Mapping[str, Any], concerned: set[str]) -> None:
    for request_id, draft in drafts.items():
        event = _pipeline_event(entry, body, is_concerned=request_id in concerned)
        if event is None or not draft.move(event, _moment(entry.at), found=draft.stage):
            continue
        if event in (Event.BUILT, Event.JUDGED):
            draft.digest, draft.verdict = body.get("digest"), body.get("verdict")
        draft.note(entry, body)


def _pipeline_event(entry: Entry, body: Mapping[str, Any], *, is_concerned: bool) -> Event | None:
    if entry.kind == EntryKind.ROLLED_BACK:
        return None if is_concerned else Event.ROLLED_BACK  # the restored champion still holds what it lists
    if not is_concerned:
        return None
    if entry.kind == EntryKind.REVERIFIED:
        return {"passed": Event.REVERIFIED, "failed": Event.REGRESSED}.get(body.get("verdict", ""))
    return PIPELINE[EntryKind(entry.kind)]


def _closed_draft(draft: _Draft, table: DeadlineTable) -> Case:
    body = draft.added.body
    regime = table.regime_for(body["ground"], body["jurisdiction"], named=body.get("regime"))
    received_at = _moment(body["received_at"] if "received_at" in body else f"{body['received']}T00:00:00+00:00")
    clock = Clock(received_at, tuple(draft.pauses), draft.is_extended, draft.contested_at, met=tuple(draft.met.items()))
    return Case(
        request_id=body["request_id"],
        state=draft.state,
        regime=regime,
        ground=body["ground"],
        jurisdiction=body["jurisdiction"],
        base=body["base"],
        concepts=body["concepts"],
        received_at=received_at,
        channel=body.get("channel", "command"),
        lacks=tuple(body.get("lacks", ())),
        history=tuple(draft.history),
        deadlines=deadlines_of(table.find(regime), clock, near_fraction=table.near_fraction),
        is_paused=bool(draft.pauses) and draft.pauses[-1].ended is None,
        is_extended=draft.is_extended,
        digest=draft.digest,
        verdict=draft.verdict,
        commitments=draft.commitments,
        is_erased=draft.is_erased,
    )


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
