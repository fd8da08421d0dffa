"""The champion as the record has it: which model, promoted on what, and whether its stored bytes are still those.

Guarantees:
    1. What the alias points to is compared with the ledger before it is used.
    2. Every byte is read from the object store again and compared with the promoted digest; no local copy counts.
    3. The bounds of the promotion come from its evidence bundle, which is verified against the ledger's digest.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flows import succession
from flows.errors import BadRequestError, FlowError
from flows.plan import candidate_key
from flows.services import Services
from infra.errors import DigestMismatchError, NotFoundError
from infra.registry import ModelVersion, Registry
from validation.evidence import verify_evidence


class AlteredChampionError(FlowError):
    """What is stored or pointed to as the champion is not what was promoted."""


@dataclass(frozen=True)
class Champion:
    """The model in production and the record of its promotion."""

    version: ModelVersion
    recorded: succession.Champion
    """What the ledger says of it."""
    base_digest: str


class Promised(BaseModel):
    """What the champion was promoted on."""

    model_config = ConfigDict(frozen=True)

    gates: list[dict[str, Any]]
    retained: tuple[str, ...]


def find_champion(services: Services, registry: Registry) -> Champion:
    """Returns the champion.

    Raises:
        BadRequestError: Nothing was promoted yet.
        AlteredChampionError: The alias points to something other than what the ledger says was promoted last.
    """
    version, recorded = registry.champion(), succession.read_succession(services).champion
    if version is None and recorded is None:
        raise BadRequestError("expected a champion, found none; `scapre takedown run` makes and promotes one")
    found = f"version {version.version} with digest {version.digest}" if version else "none"
    if version is None or recorded is None or (version.version, version.digest) != (recorded.version, recorded.digest):
        expected = f"version {recorded.version} with digest {recorded.digest}" if recorded else "none"
        raise AlteredChampionError(
            f"expected the champion {expected} as the ledger records it, found {found}; somebody moved the alias "
            "outside the pipeline: `scapre registry audit` says what else differs, `scapre registry repair` mends it"
        )
    built = services.ledger.find(f"built/{recorded.key}")
    if built is None:
        raise AlteredChampionError(
            f"expected the ledger to say how {found} was built, found no such entry; check it with "
            "`scapre ledger verify`"
        )
    return Champion(version, recorded, built.body["base_digest"])


def fetch_champion(services: Services, champion: Champion, folder: Path) -> Path:
    """Brings the champion's bytes to `folder`, a new one, each file checked against the promoted digest.

    Raises:
        AlteredChampionError: A stored file is missing or another one.
    """
    try:
        return services.store.get_directory(
            candidate_key(champion.recorded.key), folder, digest=champion.recorded.digest
        )
    except (DigestMismatchError, NotFoundError) as error:
        raise AlteredChampionError(
            f"expected the stored champion byte for byte as it was promoted, found: {error}"
        ) from error


def read_promised(services: Services, champion: Champion, folder: Path) -> Promised:
    """Returns the gates of the promotion, from its evidence in the object store, by way of `folder`, a new one.

    Raises:
        AlteredChampionError: The bundle is missing, or is not the one that the ledger names.
    """
    key, digest = champion.recorded.key, champion.recorded.evidence
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
    return Promised(gates=verdict["gates"], retained=protocol["retained"])
