"""Decisions: whether a candidate that passed may become the champion, said by a named person or by the policy.

Guarantees:
    1. What is approved is a digest of the candidate and one of its evidence; nothing else is promoted under it.
    2. The approver is none of the requesters of the run, by name and by contact.
    3. An approval runs out; a candidate that was declined or rolled back is never approved automatically.
    4. Approving or declining twice is doing it once. Names of approvers are kept beside the ledger, not in it.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from flows import intake
from flows.approval_policy import load_approval_policy
from flows.errors import BadRequestError, FlowError
from flows.promotion import promotion_key, promotion_lock, require_nothing_lost
from flows.services import Services
from flows.succession import Succession, read_succession
from infra.chain import Entry, EntryKind

State = Literal["refused", "waiting", "former", "approved", "declined", "champion"]
POLICY = "policy"
SHORTEST_DIGEST = 8


class NotIndependentError(FlowError):
    """The approver is one of those who asked."""


@dataclass(frozen=True)
class JudgedCandidate:
    """A judged candidate and what was decided about it."""

    judged: Entry
    state: State
    """refused: it did not pass; waiting: for a decision; former: it was champion until another took its place."""
    decisions: tuple[Entry, ...]
    """Approvals and refusals so far, oldest first."""
    rollback: Entry | None
    """The rollback that took it out of production last."""

    @property
    def approval(self) -> Entry | None:
        """The newest approval, if it is the newest decision."""
        last = self.decisions[-1] if self.decisions else None
        return last if last is not None and last.kind == EntryKind.APPROVED else None


def judged_key(key: str) -> str:
    """Returns the idempotency key under which the judgement of a run is recorded."""
    return f"judged/{key}"


def requests_of(services: Services, judged: Entry) -> list[str]:
    """Returns the requests that a judged candidate honours; older ledgers name them where it was built."""
    if "request_ids" in judged.body:
        return list(judged.body["request_ids"])
    built = services.ledger.find(f"built/{judged.body['key']}")
    return list(built.body["request_ids"]) if built else []


def find_candidate(services: Services, judged: Entry) -> JudgedCandidate:
    """Returns what was decided about a judged candidate."""
    return _fold(services.ledger.entries(), judged, succession=read_succession(services))


def waiting_candidates(services: Services) -> list[JudgedCandidate]:
    """Returns the candidates that somebody should decide on, oldest first.

    A candidate that would take active requests out of force is not among them: it cannot be approved any more.
    """
    entries, succession = services.ledger.entries(), read_succession(services)
    candidates = [_fold(entries, e, succession=succession) for e in entries if e.kind == EntryKind.JUDGED]
    held = set(succession.champion.request_ids) if succession.champion else set()
    active = set(intake.active_requests(services))
    return [
        c for c in candidates if c.state == "waiting" and not (held - set(requests_of(services, c.judged))) & active
    ]


def find_judged(services: Services, digest: str) -> Entry:
    """Returns the judgement of a candidate by its digest, of which the first digits are enough.

    Raises:
        BadRequestError: No judged candidate, or more than one, has a digest that begins so.
    """
    found = [e for e in services.ledger.entries(kind=EntryKind.JUDGED) if e.body["digest"].startswith(digest.lower())]
    digests = {entry.body["digest"] for entry in found}
    if len(digest) < SHORTEST_DIGEST or len(digests) != 1:
        raise BadRequestError(
            f"expected the digest of one judged candidate ({SHORTEST_DIGEST} digits or more), found {digest!r}, which "
            f"{len(digests) or 'no'} of them have; `scapre approvals` lists those that wait"
        )
    passed = [entry for entry in found if entry.body["verdict"] == "passed"]
    return (passed or found)[-1]


def approve(services: Services, judged: Entry, *, by: str, reason: str = "") -> tuple[Entry, bool]:
    """Records a person's yes; returns the approval and whether it is new.

    Raises:
        BadRequestError: The candidate did not pass, or was declined or rolled back and no reason is given.
        NotIndependentError: The approver is one of those who asked.
        StaleApprovalError: The champion honours requests by now that this candidate does not.
    """
    require_independent(services, judged, by=by)
    with promotion_lock(services, owner="approval"):
        candidate = find_candidate(services, judged)
        if candidate.approval is not None and candidate.state in ("approved", "champion"):
            return candidate.approval, False
        require_approvable(services, candidate, reason=reason)
        return _record_approval(services, candidate, by=by, reason=reason), True


def require_approvable(services: Services, candidate: JudgedCandidate, *, reason: str) -> None:
    """Refuses an approval that could not lead to a promotion.

    Raises:
        BadRequestError: The candidate did not pass, or was declined or rolled back and no reason is given.
        StaleApprovalError: The champion honours requests by now that this candidate does not.
    """
    body = candidate.judged.body
    if candidate.state == "refused":
        raise BadRequestError(
            f"expected a candidate that passed, found digest {body['digest'][:16]} with verdict {body['verdict']}; "
            "nothing but a passed verdict is approved"
        )
    if (candidate.state == "declined" or candidate.rollback is not None) and not reason:
        past = "rolled back" if candidate.rollback is not None else "declined"
        raise BadRequestError(f"expected a reason, since this candidate was {past} before, found none; add --reason")
    request_ids = requests_of(services, candidate.judged)
    require_nothing_lost(services, read_succession(services), request_ids, digest=body["digest"])


def approve_by_policy(services: Services, judged: Entry) -> Entry | None:
    """Records the policy's yes, or returns None where it asks for a person."""
    policy = load_approval_policy(services.settings.approval_policy)
    with promotion_lock(services, owner=POLICY):
        candidate = find_candidate(services, judged)
        if candidate.approval is not None and candidate.state in ("approved", "champion"):
            return candidate.approval
        is_open = candidate.state in ("waiting", "former") and candidate.rollback is None
        if not is_open or policy.needs_person(_grounds(services, judged)):
            return None
        request_ids, digest = requests_of(services, judged), judged.body["digest"]
        require_nothing_lost(services, read_succession(services), request_ids, digest=digest)
        return _record_approval(
            services, candidate, by=POLICY, reason="the policy approves these grounds automatically"
        )


def decline(services: Services, judged: Entry, *, by: str, reason: str) -> tuple[Entry, bool]:
    """Records a person's no; returns the entry and whether it is new.

    Raises:
        BadRequestError: Nobody is named, no reason is given, or the candidate is champion already or did not pass.
    """
    with promotion_lock(services, owner="approval"):
        candidate = find_candidate(services, judged)
        require_declinable(candidate, by=by, reason=reason)
        if candidate.state == "declined":
            return candidate.decisions[-1], False
        record = {
            **_subject_of(services, candidate.judged),
            "approver": _keep_name(services, candidate, by),
            "reason": reason,
        }
        key = f"declined/{_round(candidate)}"
        return services.ledger.append(EntryKind.DECLINED, record, idempotency_key=key), True


def require_declinable(candidate: JudgedCandidate, *, by: str, reason: str) -> None:
    """Refuses a no that says nothing, or comes too late.

    Raises:
        BadRequestError: Nobody is named, no reason is given, or the candidate is champion already or did not pass.
    """
    require_named(by)
    if not reason.strip():
        raise BadRequestError("expected a reason for declining, found none; add --reason")
    if candidate.state in ("champion", "refused"):
        raise BadRequestError(
            f"expected a candidate that waits for a decision, found one that is {candidate.state}; "
            + ("`scapre rollback` takes a champion back" if candidate.state == "champion" else "nothing is to be done")
        )


def require_independent(services: Services, judged: Entry, *, by: str) -> None:
    """Refuses an approver who is among those who asked; requesters whose data was erased cannot be compared any more.

    Raises:
        NotIndependentError: The name or contact is that of a requester.
        BadRequestError: Nobody is named.
    """
    require_named(by)
    for request_id in requests_of(services, judged):
        requester = intake.find_request(services, request_id).requester
        names = {value for value in requester.model_dump().values() if isinstance(value, str)} - {requester.role}
        if any(_normal(by) == _normal(name) for name in names):
            raise NotIndependentError(
                f"expected an approver who is none of the requesters, found the requester of {request_id}; "
                "let somebody else decide"
            )


def require_named(by: str) -> None:
    """Refuses an empty name and the policy's.

    Raises:
        BadRequestError: Nobody is named.
    """
    if not _normal(by) or _normal(by) == _normal(POLICY):
        raise BadRequestError(f"expected the name of a person in --by, found {by!r}; name who decides")


def approver_name(services: Services, decision: Entry) -> str:
    """Returns who decided: a name kept beside the ledger, `policy`, or a note that the name was erased."""
    approver = decision.body["approver"]
    if approver == POLICY:
        return POLICY
    name = f"approver/{str(decision.idempotency_key).split('/', 1)[1]}"
    kept = services.personal.find(name)
    return str(kept["name"]) if kept and services.personal.matches(name, approver) else "a person whose name was erased"


def _fold(entries: Sequence[Entry], judged: Entry, *, succession: Succession) -> JudgedCandidate:
    key = judged.body["key"]
    decisions = tuple(e for e in entries if e.kind in (EntryKind.APPROVED, EntryKind.DECLINED) and e.body["key"] == key)
    promoted = {e.idempotency_key for e in entries if e.kind == EntryKind.PROMOTED and e.body["key"] == key}
    rollback = succession.rolled_back.get(key)
    return JudgedCandidate(judged, _state(judged, decisions, promoted, succession=succession), decisions, rollback)


def _state(judged: Entry, decisions: tuple[Entry, ...], promoted: set[str | None], *, succession: Succession) -> State:
    key, last = judged.body["key"], decisions[-1] if decisions else None
    if judged.body["verdict"] != "passed":
        return "refused"
    if succession.champion is not None and succession.champion.key == key:
        return "champion"
    if last is not None and last.kind == EntryKind.DECLINED:
        return "declined"
    if last is not None and promotion_key(last) not in promoted and not _has_run_out(last):
        return "approved"
    return "former" if promoted and key not in succession.rolled_back else "waiting"


def _has_run_out(approval: Entry) -> bool:
    return datetime.now(UTC) > datetime.fromisoformat(approval.body["expires"])


def _record_approval(services: Services, candidate: JudgedCandidate, *, by: str, reason: str) -> Entry:
    days = load_approval_policy(services.settings.approval_policy).valid_days
    record = {
        **_subject_of(services, candidate.judged),
        "run_id": candidate.judged.body["run_id"],
        "approver": by if by == POLICY else _keep_name(services, candidate, by),
        "expires": (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="seconds"),
        "reason": reason,
    }
    return services.ledger.append(EntryKind.APPROVED, record, idempotency_key=f"approved/{_round(candidate)}")


def _subject_of(services: Services, judged: Entry) -> dict[str, object]:
    record = {name: judged.body[name] for name in ("key", "digest", "evidence")}
    return {**record, "request_ids": requests_of(services, judged)}


def _round(candidate: JudgedCandidate) -> str:
    return f"{candidate.judged.body['key']}/{len(candidate.decisions)}"


def _keep_name(services: Services, candidate: JudgedCandidate, by: str) -> str:
    name = f"approver/{_round(candidate)}"
    services.personal.erase(name)  # of an attempt that was killed before it was recorded
    return services.personal.keep(name, {"name": by})


def _grounds(services: Services, judged: Entry) -> set[str]:
    added = services.ledger.entries(kind=EntryKind.REQUEST_ADDED)
    grounds = {entry.body["request_id"]: str(entry.body["ground"]) for entry in added}
    return {grounds.get(request_id, "unknown") for request_id in requests_of(services, judged)}


def _normal(name: str) -> tuple[str, ...]:
    """One value for one name, however it is written: case, accents' form, punctuation and order do not matter."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return tuple(sorted("".join(c if c.isalnum() or c in "@+" else " " for c in plain).split()))
