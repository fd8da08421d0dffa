"""How a champion changes: promotion and repair, every effect beside its undo.

Guarantees:
    1. Nothing is promoted but what an approval names, by digest, and only if every stored byte of it is still the same.
    2. Promotion is compare-and-set under a lock in the ledger's database: an approval never takes a request out of
       force that a newer champion honours.
    3. Alias, tags, ledger entry and the object store's pointer move together: an intent is noted first, the ledger
       entry decides, and whoever comes next after a kill finishes what was recorded and undoes what was not.
    4. One approval promotes once.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from flows import intake
from flows.errors import FlowError
from flows.plan import candidate_key
from flows.services import Services
from flows.stored import require_stored
from flows.succession import Succession, read_succession
from infra.chain import Entry, EntryKind
from infra.digests import canonical_json
from infra.intents import clear_intent, find_intent, note_intent
from infra.locks import HeldLock, hold_lock
from infra.registry import CHAMPION, STANDING_TAG, Registry

LOCK_SLACK_SECONDS = 30.0


class StaleApprovalError(FlowError):
    """What was approved no longer holds everything that the champion holds by now, or the approval ran out."""


class DriftedAliasError(FlowError):
    """An alias was moved by somebody who does not keep the ledger."""


def source_of(services: Services, key: str) -> str:
    """Returns the URI of a run's candidate, as the registry records it."""
    return services.store.locate(candidate_key(key))


def pointer_key(services: Services) -> str:
    """Returns where the object store says who is champion."""
    return f"models/{services.settings.registered_model_name}/champion.json"


def promote(services: Services, registry: Registry, approval: Entry) -> Entry:
    """Makes what an approval names the champion; returns the ledger's entry. Safe to repeat after a kill.

    Raises:
        StaleApprovalError: The approval ran out, or the champion honours requests by now that this candidate does not.
        AlteredModelError: A stored byte of model or evidence is not the one that was approved.
        DriftedAliasError: Somebody moved an alias without the ledger.
    """
    body = approval.body
    with promotion_lock(services, owner=approval.entry_hash[:16]) as lock:
        settle(services, registry, lock=lock)
        recorded = services.ledger.find(promotion_key(approval))
        if recorded is not None:
            return recorded
        succession = read_succession(services)
        require_in_force(services, approval)
        require_nothing_lost(services, succession, body["request_ids"], digest=body["digest"])
        source = source_of(services, body["key"])
        version = registry.register(source=source, digest=body["digest"], run_id=body["run_id"])
        require_stored(services, key=body["key"], digest=body["digest"], evidence=body["evidence"])
        champion = succession.champion
        record = {
            "key": body["key"],
            "model": registry.model_name,
            "version": version.version,
            "digest": body["digest"],
            "previous": champion.version if champion else None,
            "evidence": body["evidence"],
            "request_ids": body["request_ids"],
            "approval": approval.entry_hash,
        }
        return carry_out(services, registry, EntryKind.PROMOTED, record, key=promotion_key(approval), lock=lock)


def refuse(services: Services, judged: Entry) -> Entry:
    """Records that a candidate was judged and not promoted."""
    body = judged.body
    record = {name: body[name] for name in ("key", "verdict", "digest", "evidence", "request_ids") if name in body}
    return services.ledger.append(EntryKind.REFUSED, record, idempotency_key=refusal_key(judged))


def refusal_key(judged: Entry) -> str:
    """Returns the idempotency key under which a run's refusal is recorded."""
    return f"refused/{judged.body['key']}"


def promotion_key(approval: Entry) -> str:
    """Returns the idempotency key of the one promotion that an approval allows."""
    return f"promoted/{approval.entry_hash}"


@contextmanager
def promotion_lock(services: Services, *, owner: str) -> Generator[HeldLock]:
    """Holds the lock under which approvals are recorded and champions change; waits for a killed holder's lease."""
    lease = services.settings.promotion_lease_seconds
    wait = lease + LOCK_SLACK_SECONDS
    with hold_lock(services.ledger.engine, owner=owner, lease_seconds=lease, wait_seconds=wait) as lock:
        yield lock


def has_intent(services: Services) -> bool:
    """Whether a promotion or rollback was begun and neither finished nor undone yet."""
    return find_intent(services.ledger.engine, _intent_name(services)) is not None


def finish_interrupted(services: Services, registry: Registry) -> bool:
    """Finishes or undoes what a killed process left half done; says whether there was something. Quick if not."""
    if not has_intent(services):
        return False
    with promotion_lock(services, owner="repair") as lock:
        return has_intent(services) and settle(services, registry, lock=lock)


def repair(services: Services, registry: Registry) -> None:
    """Makes aliases, tags and pointer say what the ledger says, whoever moved them. Safe to repeat."""
    with promotion_lock(services, owner="repair") as lock:
        if not (has_intent(services) and settle(services, registry, lock=lock)):
            follow_ledger(services, registry, lock=lock)


def settle(services: Services, registry: Registry, *, lock: HeldLock) -> bool:
    """Finishes or undoes what a killed process left half done; says whether there was something.

    Raises:
        DriftedAliasError: Nothing was begun, and yet the alias is not where the ledger says.
    """
    intent = find_intent(services.ledger.engine, _intent_name(services))
    if intent is not None:
        follow_ledger(services, registry, lock=lock, touched=intent["versions"], was_candidate=intent["candidate"])
        clear_intent(services.ledger.engine, _intent_name(services))
        return True
    champion, found = read_succession(services).champion, registry.aliases().get(CHAMPION)
    if found != (champion.version if champion else None):
        raise DriftedAliasError(
            f"expected the alias champion at version {champion.version if champion else 'none'} as the ledger records, "
            f"found {found or 'none'}; see `scapre registry audit`, and put it back with `scapre registry repair`"
        )
    return False


def follow_ledger(
    services: Services,
    registry: Registry,
    *,
    lock: HeldLock,
    touched: list[str] | None = None,
    was_candidate: str | None = None,
) -> None:
    """Makes aliases, tags and pointer say what the ledger says; also the undo of everything it does not record."""
    succession = read_succession(services)
    _move(registry, succession, expected=registry.aliases().get(CHAMPION), touched=touched or [], lock=lock)
    if was_candidate is not None and succession.standing_of(was_candidate) == "candidate":
        registry.point_candidate(was_candidate)
    _write_pointer(services, succession)


def carry_out(
    services: Services, registry: Registry, kind: EntryKind, record: Mapping[str, Any], *, key: str, lock: HeldLock
) -> Entry:
    """Moves alias, tags, ledger entry and pointer as one; see the module. What fails before the entry is undone."""
    before = read_succession(services)
    engine, name = services.ledger.engine, _intent_name(services)
    versions = sorted({str(v) for v in (record["version"], record["previous"]) if v is not None})
    was_candidate = str(record["version"]) if kind == EntryKind.PROMOTED else None
    note_intent(engine, name, {"key": key, "versions": versions, "candidate": was_candidate})
    try:
        after = before.moved(kind, record)
        expected = before.champion.version if before.champion else None
        _move(registry, after, expected=expected, touched=versions, lock=lock)
        lock.ensure_held()
        entry = services.ledger.append(kind, record, idempotency_key=key)
    except Exception:  # what the ledger does not record must not stay
        follow_ledger(services, registry, lock=lock, touched=versions, was_candidate=was_candidate)
        clear_intent(engine, name)
        raise
    _write_pointer(services, read_succession(services))
    clear_intent(engine, name)
    return entry


def _move(
    registry: Registry, succession: Succession, *, expected: str | None, touched: list[str], lock: HeldLock
) -> None:
    champion, previous = succession.champion, succession.previous
    registry.point(
        champion=champion.version if champion else None,
        previous=previous.version if previous else None,
        expected=expected,
        lock=lock,
    )
    for version in {*touched, *(c.version for c in (champion, previous) if c)}:
        registry.tag_version(version, {STANDING_TAG: succession.standing_of(version)})


def _write_pointer(services: Services, succession: Succession) -> None:
    champion, newest, key = succession.champion, succession.newest, pointer_key(services)
    if champion is None or newest is None:
        return
    content = canonical_json(expected_pointer(services, succession))
    if not services.store.exists(key) or services.store.get_bytes(key) != content:
        services.store.put_bytes(key, content)


def expected_pointer(services: Services, succession: Succession) -> dict[str, Any]:
    """Returns what the object store's pointer must say."""
    champion, newest = succession.champion, succession.newest
    assert champion is not None, "asked for before the first promotion"
    assert newest is not None, "a champion has an entry"
    return {
        "format": 1,
        "model": services.settings.registered_model_name,
        "version": champion.version,
        "digest": champion.digest,
        "uri": source_of(services, champion.key),
        "evidence": champion.evidence,
        "entry": newest.entry_hash,
    }


def require_in_force(services: Services, approval: Entry) -> None:
    """Refuses an approval that ran out, or that was taken back by declining the candidate.

    Raises:
        StaleApprovalError: It no longer holds.
    """
    body = approval.body
    later = services.ledger.entries(kind=EntryKind.DECLINED, after=approval.sequence)
    if any(entry.body["key"] == body["key"] for entry in later):
        raise StaleApprovalError(f"expected an approval in force, found digest {body['digest'][:16]} declined since")
    if datetime.now(UTC) > datetime.fromisoformat(body["expires"]):
        raise StaleApprovalError(
            f"expected an approval in force, found one that ran out at {body['expires']}; approve digest "
            f"{body['digest'][:16]} again"
        )


def require_nothing_lost(services: Services, succession: Succession, request_ids: list[str], *, digest: str) -> None:
    """Refuses a candidate that would take active requests out of force.

    Raises:
        StaleApprovalError: The champion honours active requests that the candidate does not.
    """
    champion = succession.champion
    lost = lost_requests(services, held=champion.request_ids, then=request_ids) if champion else []
    if champion and lost:
        raise StaleApprovalError(
            f"expected candidate {digest[:16]} to honour every active request that the champion honours, found "
            f"{', '.join(lost)} only in champion version {champion.version}; `scapre takedown run` makes one with all"
        )


def lost_requests(services: Services, *, held: Sequence[str], then: Sequence[str]) -> list[str]:
    """Returns the active requests that are honoured now and would not be then."""
    return sorted((set(held) - set(then)) & set(intake.active_requests(services)))


def _intent_name(services: Services) -> str:
    return f"champion of {services.settings.registered_model_name}"
