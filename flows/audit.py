"""Audit: whether what the aliases and the pointer name is, byte for byte, what was approved.

Guarantees:
    1. Nothing is changed.
    2. Every difference is named: alias, tag, pointer, ledger, or file of the stored model and its evidence.
"""

import json

from flows.promotion import expected_pointer, has_intent, pointer_key, promotion_key
from flows.services import Services
from flows.stored import stored_differences
from flows.succession import Champion, read_succession
from infra.chain import EntryKind
from infra.errors import NotFoundError, PermanentFailure
from infra.registry import CANDIDATE, CHAMPION, PREVIOUS, STANDING_TAG, Registry


def audit_registry(services: Services, registry: Registry) -> list[str]:
    """Returns one sentence for each difference between ledger, registry and object store; empty if there is none."""
    succession = read_succession(services)
    champion, previous = succession.champion, succession.previous
    differences = [f"ledger: {fault}" for fault in services.ledger.verify()]
    if has_intent(services):
        differences.append("a promotion or rollback was begun and not finished; `scapre registry repair` settles it")
    aliases = registry.aliases()
    for alias, expected in ((CHAMPION, champion), (PREVIOUS, previous)):
        wanted, found = expected.version if expected else None, aliases.get(alias)
        if found != wanted:
            differences.append(f"alias {alias}: expected version {wanted or 'none'}, found {found or 'none'}")
    if champion and aliases.get(CANDIDATE) == champion.version:
        differences.append(f"alias {CANDIDATE}: expected a version other than the champion, found {champion.version}")
    if champion:
        differences += _version_differences(services, registry, champion)
        differences += _approval_differences(services, champion)
        differences += _pointer_differences(services)
        differences += stored_differences(
            services, key=champion.key, digest=champion.digest, evidence=champion.evidence
        )
    return differences


def _version_differences(services: Services, registry: Registry, champion: Champion) -> list[str]:
    try:
        version = registry.version(champion.version)
    except NotFoundError as error:
        return [f"version {champion.version}: {error}"]
    expected = {
        "digest": (champion.digest, version.digest),
        "source": (expected_pointer(services, read_succession(services))["uri"], version.source),
        "tag " + STANDING_TAG: ("champion", version.tags.get(STANDING_TAG, "none")),
    }
    return [
        f"version {champion.version}: expected {name} {wanted}, found {found}"
        for name, (wanted, found) in expected.items()
        if wanted != found
    ]


def _approval_differences(services: Services, champion: Champion) -> list[str]:
    keys = {promotion_key(entry): entry for entry in services.ledger.entries(kind=EntryKind.APPROVED)}
    promoted = next(e for e in services.ledger.entries() if e.entry_hash == champion.entry_hash)
    approval = keys.get(str(promoted.idempotency_key))
    if approval is None:
        return ["approval: expected one in the ledger for the promotion of the champion, found none"]
    wanted, found = approval.body, promoted.body
    return [
        f"approval: expected {name} {wanted[name]} as approved, found {found[name]}"
        for name in ("digest", "evidence", "key", "request_ids")
        if wanted[name] != found[name]
    ]


def _pointer_differences(services: Services) -> list[str]:
    key, expected = pointer_key(services), expected_pointer(services, read_succession(services))
    try:
        found = json.loads(services.store.get_bytes(key))
    except (PermanentFailure, ValueError) as error:
        return [f"{key}: {error}"]
    if not isinstance(found, dict):
        return [f"{key}: expected a mapping, found {type(found).__name__}"]
    return [
        f"{key}: expected {name} {expected.get(name)}, found {found.get(name)}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]
