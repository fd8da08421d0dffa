"""From a passed verdict to the champion, every effect beside its undo.

Guarantees:
    1. Nothing but a passed verdict promotes.
    2. Promotion is compare-and-set under a lock: whoever decided on an older champion is refused.
    3. A run that was already promoted is recognised and not promoted again.
"""

from flows.errors import FlowError
from flows.plan import Plan
from flows.services import Services
from infra.chain import Entry, EntryKind
from infra.locks import hold_lock
from infra.registry import ModelVersion, Registry
from validation.judgement import Verdict

LOCK_WAIT_SECONDS = 60.0


class NotPassedError(FlowError):
    """Somebody asked for the promotion of a candidate that did not pass."""


def promote(
    services: Services, registry: Registry, plan: Plan, *, version: ModelVersion, verdict: Verdict, evidence: str
) -> Entry:
    """Makes a version the champion and records it; returns the ledger's entry. Safe to repeat after a kill.

    Raises:
        NotPassedError: The verdict is not `passed`.
        StaleChampionError: Another version was promoted meanwhile.
    """
    if verdict != "passed":
        raise NotPassedError(f"expected a passed verdict, found {verdict!r}; nothing but a passed verdict promotes")
    lease = services.settings.promotion_lease_seconds
    with hold_lock(
        services.ledger.engine, owner=plan.key[:16], lease_seconds=lease, wait_seconds=LOCK_WAIT_SECONDS
    ) as lock:
        recorded = services.ledger.find(promotion_key(plan.key))
        if recorded is not None:
            return recorded
        champion = registry.champion()
        promotion = None
        if champion is None or champion.version != version.version:
            promotion = registry.promote(
                version.version, expected_champion=champion.version if champion else None, lock=lock
            )
        previous = registry.previous()
        try:
            return services.ledger.append(
                EntryKind.PROMOTED,
                {
                    "key": plan.key,
                    "model": registry.model_name,
                    "version": version.version,
                    "digest": version.digest,
                    "previous": previous.version if previous else None,
                    "evidence": evidence,
                    "request_ids": list(plan.request_ids),
                },
                idempotency_key=promotion_key(plan.key),
            )
        except Exception:
            if promotion is not None:  # an alias that the ledger does not know of must not stay
                registry.undo(promotion, lock=lock)
            raise


def refuse(services: Services, plan: Plan, *, verdict: Verdict, digest: str, evidence: str) -> Entry:
    """Records that a candidate was judged and not promoted."""
    return services.ledger.append(
        EntryKind.REFUSED,
        {"key": plan.key, "verdict": verdict, "digest": digest, "evidence": evidence},
        idempotency_key=refusal_key(plan.key),
    )


def find_outcome(services: Services, key: str) -> Entry | None:
    """Returns the entry that ended a run: promoted or refused."""
    return services.ledger.find(promotion_key(key)) or services.ledger.find(refusal_key(key))


def promotion_key(key: str) -> str:
    """Returns the idempotency key of a run's promotion."""
    return f"promoted/{key}"


def refusal_key(key: str) -> str:
    """Returns the idempotency key of a run's refusal."""
    return f"refused/{key}"
