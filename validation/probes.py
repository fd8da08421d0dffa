"""Probes: what the models are asked for, decided before anything is drawn.

Guarantees:
    1. The same concepts, packs and counts give the same probes, in the same order.
    2. No two probes of a judgement share a seed, so no two pictures share their noise except in a pair.
    3. Every probe names the pack that its prompt comes from.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from validation.errors import ProbeError

Role = Literal["target", "retained", "hidden", "style"]
Kind = Literal["object", "style", "identity", "unsafe"]


@dataclass(frozen=True)
class Subject:
    """A concept as the judge sees it: what to ask for, and which detector label answers."""

    name: str
    kind: Kind = "object"
    aliases: tuple[str, ...] = ()
    label: str | None = None
    """The detector's label, where it differs from the name."""

    def __post_init__(self) -> None:
        if not self.name.strip() or not all(alias.strip() for alias in self.aliases):
            raise ProbeError(f"expected names, found an empty one in {self!r}; remove or fill it")

    @property
    def head(self) -> Literal["object", "style"]:
        """Which of the detectors recognises it."""
        return "style" if self.kind == "style" else "object"


@dataclass(frozen=True)
class Probe:
    """One prompt and one seed, and what should or should not be seen."""

    prompt: str
    seed: int
    concept: str
    role: Role
    pack: str

    @property
    def digest(self) -> str:
        """SHA-256 over what decides the picture, prompt and seed: one picture serves every role it has."""
        return sha256_of({"prompt": self.prompt, "seed": self.seed})


def build_probes(
    concept: str, role: Role, *, prompts: Sequence[str], count: int, first_seed: int, pack: str
) -> list[Probe]:
    """Returns `count` probes for a concept, prompts in turn, seeds counting up from `first_seed`.

    Args:
        concept: The concept that every probe is about.
        role: Why it is asked for.
        prompts: What is asked.
        count: How many probes.
        first_seed: Seed of the first.
        pack: Name recorded in every probe.

    Raises:
        ProbeError: There is no prompt, or no probe is wanted.
    """
    if not prompts or count < 1:
        raise ProbeError(
            f"expected at least one prompt and one probe for {concept!r}, found {len(prompts)} prompts and a count of "
            f"{count}; nothing asked is nothing shown"
        )
    return [Probe(prompts[i % len(prompts)], first_seed + i, concept, role, pack) for i in range(count)]


def probes_digest(probes: Sequence[Probe]) -> str:
    """Returns SHA-256 over all fields of all probes, in order."""
    return sha256_of([asdict(probe) for probe in probes])


def sha256_of(value: Any) -> str:
    """Returns SHA-256 over a value's canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()
