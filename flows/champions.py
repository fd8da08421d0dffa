"""The champion as the record has it: which model, promoted on what, and whether its stored bytes are still those.

Guarantees:
    1. What the alias points to is compared with the ledger before it is used.
    2. Every byte is read from the object store again and compared with the promoted digest; no local copy counts.
    3. The bounds of the promotion come from its evidence bundle, which is verified against the ledger's digest.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.errors import BadRequestError, FlowError
from flows.services import Services
from infra.chain import Entry, EntryKind
from infra.errors import DigestMismatchError, NotFoundError
from infra.registry import ModelVersion, Registry
from validation.evidence import verify_evidence


class AlteredChampionError(FlowError):
    """What is stored or pointed to as the champion is not what was promoted."""


@dataclass(frozen=True)
class Champion:
    """The model in production and the record of its promotion."""

    version: ModelVersion
    promotion: Entry
    """The ledger's entry of the promotion of these bytes."""
    base_digest: str

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The requests it was made for."""
        return tuple(self.promotion.body["request_ids"])


@dataclass(frozen=True)
class Promised:
    """What the champion was promoted on."""

    gates: list[dict[str, Any]]
    targets: tuple[str, ...]
    retained: tuple[str, ...]


def find_champion(services: Services, registry: Registry) -> Champion:
    """Returns the champion.

    Raises:
        BadRequestError: Nothing was promoted yet.
        AlteredChampionError: The alias points to something other than what the ledger says was promoted last.
    """
    version = registry.champion()
    moves = [*services.ledger.entries(kind=EntryKind.PROMOTED), *services.ledger.entries(kind=EntryKind.ROLLED_BACK)]
    if version is None and not moves:
        raise BadRequestError("expected a champion, found none; `scapre takedown run` makes and promotes one")
    last = max(moves, key=lambda entry: entry.sequence, default=None)
    found = version.digest if version else "none"
    if version is None or last is None or last.body["digest"] != found:
        recorded = last.body["digest"] if last else "none"
        raise AlteredChampionError(
            f"expected the champion with digest {recorded} as the ledger records it, found {found}; "
            "somebody moved the alias outside the pipeline: `scapre rollback` or a takedown run sets it right"
        )
    promotions = services.ledger.entries(kind=EntryKind.PROMOTED)
    promotion = next((entry for entry in reversed(promotions) if entry.body["digest"] == found), None)
    built = services.ledger.find(f"built/{promotion.body['key']}") if promotion else None
    if promotion is None or built is None:
        raise AlteredChampionError(
            f"expected the ledger to say how digest {found} was built and promoted, found no such entry; "
            "check the ledger with `scapre ledger verify`"
        )
    return Champion(version, promotion, built.body["base_digest"])


def fetch_champion(services: Services, champion: Champion, folder: Path) -> Path:
    """Brings the champion's bytes to `folder`, each file checked against the promoted digest.

    Raises:
        AlteredChampionError: A stored file is missing or another one.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        key = services.store.key_of(champion.version.source)
        return services.store.get_directory(key, folder, digest=champion.version.digest)
    except (DigestMismatchError, NotFoundError) as error:
        raise AlteredChampionError(
            f"expected the stored champion byte for byte as it was promoted, found: {error}"
        ) from error


def read_promised(services: Services, champion: Champion, folder: Path) -> Promised:
    """Returns the gates of the promotion, from its evidence in the object store.

    Raises:
        AlteredChampionError: The bundle is missing, or is not the one that the ledger names.
    """
    key, digest = champion.promotion.body["key"], champion.promotion.body["evidence"]
    shutil.rmtree(folder, ignore_errors=True)
    try:
        services.store.get_directory(f"evidence/{key}", folder)
    except (DigestMismatchError, NotFoundError) as error:
        raise AlteredChampionError(f"expected the evidence of the promotion, found: {error}") from error
    differences = verify_evidence(folder, expected_digest=digest)
    if differences:
        raise AlteredChampionError(
            f"expected the evidence {digest} of the promotion, found differences: {'; '.join(differences)}"
        )
    verdict, protocol = (json.loads((folder / name).read_bytes()) for name in ("verdict.json", "protocol.json"))
    return Promised(verdict["gates"], tuple(protocol["targets"]), tuple(protocol["retained"]))
