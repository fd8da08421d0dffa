"""Rollback: the previous champion again, with a recorded reason.

Guarantees:
    1. Active requests are taken out of force only where that is said to be meant.
    2. The same rollback asked for twice, by the same person with the same reason, is one rollback.
    3. What was rolled back is never approved automatically again.
"""

from flows.decisions import require_named
from flows.errors import BadRequestError
from flows.promotion import carry_out, lost_requests, promotion_lock, settle
from flows.services import Services
from flows.stored import require_stored
from flows.succession import Champion, read_succession
from infra.chain import Entry, EntryKind
from infra.registry import Registry


def roll_back(
    services: Services, registry: Registry, *, reason: str, by: str, reopens: bool = False
) -> tuple[Entry, bool]:
    """Makes the previous champion the champion again; returns the ledger's entry and whether it is new.

    Args:
        services: The adapters.
        registry: The model registry.
        reason: Why; it stays in the ledger for good.
        by: Who decided; the name is kept beside the ledger.
        reopens: Accept that active requests are no longer honoured until the next promotion.

    Raises:
        BadRequestError: There is no previous champion, or active requests would be lost and `reopens` is not set.
        AlteredModelError: A stored byte of the previous champion is not the one that was approved.
    """
    require_reasoned(reason, by=by)
    with promotion_lock(services, owner="rollback") as lock:
        settle(services, registry, lock=lock)
        repeated = find_rollback(services, reason=reason, by=by)
        if repeated is not None:
            return repeated, False
        left, restored, lost = plan_rollback(services, reopens=reopens)
        require_stored(services, key=restored.key, digest=restored.digest, evidence=restored.evidence)
        name = f"rollback/{left.entry_hash}"
        services.personal.erase(name)  # of an attempt that was killed before it was recorded
        record = {
            "model": registry.model_name,
            "version": restored.version,
            "digest": restored.digest,
            "previous": left.version,
            "left_digest": left.digest,
            "evidence": restored.evidence,
            "request_ids": list(restored.request_ids),
            "reopened": lost,
            "reason": reason,
            "by": services.personal.keep(name, {"name": by}),
        }
        key = f"rolled_back/{left.entry_hash}"
        return carry_out(services, registry, EntryKind.ROLLED_BACK, record, key=key, lock=lock), True


def plan_rollback(services: Services, *, reopens: bool) -> tuple[Champion, Champion, list[str]]:
    """Returns the champion to leave, the one to restore, and the active requests that would no longer be honoured.

    Raises:
        BadRequestError: There is no previous champion, or active requests would be lost and `reopens` is not set.
    """
    succession = read_succession(services)
    left, restored = succession.champion, succession.previous
    if left is None or restored is None:
        raise BadRequestError("expected a previous champion to return to, found none; nothing was changed")
    lost = lost_requests(services, held=left.request_ids, then=restored.request_ids)
    if lost and not reopens:
        raise BadRequestError(
            f"expected version {restored.version} to honour every active request, found {', '.join(lost)} only in "
            f"version {left.version}; repeat with --reopen to put them back in the queue"
        )
    return left, restored, lost


def find_rollback(services: Services, *, reason: str, by: str) -> Entry | None:
    """Returns the rollback that moved the champion last, if the same person asked for it with the same reason."""
    newest = read_succession(services).newest
    if newest is None or newest.kind != EntryKind.ROLLED_BACK or newest.body["reason"] != reason:
        return None
    name = str(newest.idempotency_key).replace("rolled_back/", "rollback/")
    kept = services.personal.find(name)
    return newest if kept == {"name": by} and services.personal.matches(name, newest.body["by"]) else None


def require_reasoned(reason: str, *, by: str) -> None:
    """Refuses a rollback without a reason or without a name.

    Raises:
        BadRequestError: One of them is missing.
    """
    require_named(by)
    if not reason.strip():
        raise BadRequestError("expected a reason for rolling back, found none; say why in --reason")
