"""What a judgement is, as values.

Guarantees:
    1. A judgement is frozen; nothing here computes a verdict (see `validation.gates`).
    2. Every verdict comes with the gates it rests on and with reasons in words.
    3. `describe()` of every type is plain JSON: no NumPy scalars, no paths, no NaN.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

Verdict = Literal["passed", "failed", "inconclusive"]
GateName = Literal[
    "integrity",
    "forgetting",
    "retention",
    "hidden",
    "concept floor",
    "quality",
    "robustness",
    "attack control",
    "positive control",
    "negative control",
    "picture control",
    "expectations",
]

_DRAWN_AND_SEEN = (
    "prompt",
    "seed",
    "picture",
    "address",
    "top_label",
    "top_score",
    "concept_score",
    "is_hit",
    "is_blank",
)
"""What every picture has, whoever asked for it."""

MEASURE_COLUMNS = (
    "model",
    "role",
    "kind",
    "concept",
    "pack",
    *_DRAWN_AND_SEEN,
    "image_text_score",
)
"""Columns of `Judgement.measures`, one row per picture; `measures.py` says what each holds."""

ATTACK_COLUMNS = (
    "attack",
    "against",
    "concept",
    "words",
    "vectors",
    "steps",
    *_DRAWN_AND_SEEN,
)
"""Columns of `Judgement.attacks`, one row per picture; `validation.attacks.trial` says what each holds."""

SUMMARY_COLUMNS = (
    "role",
    "kind",
    "concept",
    "pack",
    "pictures_base",
    "hits_base",
    "rate_base",
    "pictures_candidate",
    "hits_candidate",
    "rate_candidate",
    "lower",
    "upper",
    "pairs",
    "paired_difference",
)
"""Columns of `Judgement.summary`, one row per role, concept and pack."""

PROBE_COLUMNS = ("model", "role", "concept", "pack", "prompt", "seed")
"""Columns of `Judgement.planned`, one row per picture that may be asked for."""


@dataclass(frozen=True)
class GateResult:
    """One rule and its answer."""

    gate: GateName
    verdict: Verdict
    reason: str
    """One sentence with the figures."""
    concept: str | None = None
    """The concept it is about; None for a rule about a whole role or about the pictures."""
    role: str | None = None
    """The role of the probes it is about."""
    pack: str | None = None
    """The probe pack, for a gate on one concept."""
    attack: str | None = None
    """The attack, for a gate on one concept under one."""
    estimate: float | None = None
    """The point estimate: a rate in [0, 1], or a mean paired difference in [-1, 1] (of cosines: in [-2, 2])."""
    lower: float | None = None
    """One-sided lower bound at the policy's confidence."""
    upper: float | None = None
    """One-sided upper bound at the policy's confidence."""
    limit: float | None = None
    """What is compared with: the residual limit, minus the margin, the floor or the ceiling."""
    hits: int | None = None
    pictures: int = 0
    """Pictures, or pairs of pictures, that the estimate rests on."""
    is_control: bool = False
    """A control that does not pass voids the judgement."""
    is_gated: bool = True
    """False for what is reported only and never enters the verdict."""

    def describe(self) -> dict[str, Any]:
        """Returns the result as plain JSON; `attack` only where there is one."""
        record = asdict(self)
        if self.attack is None:
            record.pop("attack")
        return record


@dataclass(frozen=True)
class Reason:
    """Why a verdict is what it is."""

    kind: Literal["passed", "failed", "inconclusive", "missing", "void"]
    text: str


@dataclass(frozen=True)
class Integrity:
    """What the caller attests about the candidate's bytes."""

    is_intact: bool
    reason: str
    """What was compared, in words."""


@dataclass(frozen=True)
class Discrepancy:
    """How far a role's pictures have moved as a whole; reported beside the verdict."""

    role: str
    concepts: int
    pairs: int
    cmmd: float
    """Between base and candidate; 0 for equal pictures, see `validation.discrepancy.cmmd`."""
    standard_error: float | None
    """Jackknife over concepts; None for fewer than two."""
    other_seeds: float | None
    """What the base reaches against itself when only seeds differ; None with too few pictures of each concept."""


@dataclass(frozen=True)
class TensorDrift:
    """One tensor that changed."""

    name: str
    relative: float | None
    """Norm of the change over the norm before; None where there is no such number."""


@dataclass(frozen=True)
class PartDrift:
    """One part of a pipeline, such as its denoiser."""

    part: str
    tensors: int
    changed: int
    relative: float | None


@dataclass(frozen=True)
class Drift:
    """How far the candidate's weights are from the base's; reported beside the verdict."""

    parts: tuple[PartDrift, ...]
    largest: tuple[TensorDrift, ...]
    """The tensors that changed most, relative to themselves."""
    outside: tuple[str, ...]
    """Changed tensors outside the layers through which the denoiser reads its prompt."""
    unmatched: tuple[str, ...]
    """Tensors that only one of the models has, or that have another shape."""

    @property
    def tensors(self) -> int:
        """Number of tensors of the base."""
        return sum(part.tensors for part in self.parts)

    @property
    def changed(self) -> int:
        """Number of tensors that changed."""
        return sum(part.changed for part in self.parts)


@dataclass(frozen=True)
class Protocol:
    """All that fixes how a judgement was made; equal protocols measure the same thing the same way."""

    base_digest: str
    """As the caller names the base."""
    candidate_digest: str
    """As the caller names the candidate."""
    base_weights_digest: str
    """Computed by the judge over every weight and tokenizer it was handed; pictures are stored under it."""
    candidate_weights_digest: str
    targets: tuple[str, ...]
    retained: tuple[str, ...]
    hidden: tuple[str, ...]
    styles: tuple[str, ...]
    policy: Mapping[str, Any]
    sampler: Mapping[str, Any]
    packs: Mapping[str, str]
    """Digest of every probe pack, by name."""
    detectors: Mapping[str, str]
    """Digest of every detector, by name."""
    probes_digest: str
    """SHA-256 over every planned probe of both models, in order, drawn or not."""
    pictures_planned: Mapping[str, int]
    """By model: `base`, `candidate`. With sequential sampling the candidate's are the most that may be drawn."""
    safety_checker: Mapping[str, str]
    """By model: `absent` or `switched off`; a live one would black out pictures and pass for forgetting."""
    device: str
    versions: Mapping[str, str]
    """Of the packages that decide what is drawn and measured."""

    def describe(self) -> dict[str, Any]:
        """Returns the protocol as plain JSON."""
        record = {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self).items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}


@dataclass(frozen=True, eq=False)
class Judgement:
    """A verdict and all it rests on."""

    verdict: Verdict
    reasons: tuple[Reason, ...]
    gates: tuple[GateResult, ...]
    measures: pd.DataFrame
    """One row per picture, `MEASURE_COLUMNS`."""
    summary: pd.DataFrame
    """One row per role, concept and pack, `SUMMARY_COLUMNS`."""
    planned: pd.DataFrame
    """One row per planned picture, `PROBE_COLUMNS`, in order; `measures` has those that the stopping rule asked for."""
    protocol: Protocol
    picture_folder: Path
    """Root of the picture store; a picture is at `address[:2]/address.png` below it."""
    expectations: Mapping[str, Any]
    """What Great Expectations answered on the same tables, as plain JSON, with `success` and `is_broken`."""
    seconds: Mapping[str, float]
    """Wall-clock time by phase."""
    discrepancies: tuple[Discrepancy, ...] = ()
    """By role; none without an image-text model."""
    attacks: pd.DataFrame | None = None
    """One row per picture drawn under attack, `ATTACK_COLUMNS`; None where the policy asks for no attack."""
    drift: Drift | None = None

    @property
    def is_void(self) -> bool:
        """Whether a control failed: the judgement says nothing about the candidate."""
        return any(reason.kind == "void" for reason in self.reasons)

    def picture_path(self, address: str) -> Path:
        """Returns where the picture of a row of `measures` lies."""
        return self.picture_folder / address[:2] / f"{address}.png"

    def describe(self) -> dict[str, Any]:
        """Returns everything but the tables and the pictures as plain JSON."""
        return {
            "verdict": self.verdict,
            "is_void": self.is_void,
            "reasons": [asdict(reason) for reason in self.reasons],
            "gates": [gate.describe() for gate in self.gates],
            "protocol": self.protocol.describe(),
            "expectations": dict(self.expectations),
            "discrepancies": [asdict(each) for each in self.discrepancies],
            "drift": self.drift and asdict(self.drift),
            "seconds": dict(self.seconds),
        }
