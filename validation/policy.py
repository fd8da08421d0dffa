"""The policy: what a candidate must show, as a typed object.

Guarantees:
    1. An unknown, missing or ill-typed key is an error that names it; there is no silent default for a misspelling.
    2. A policy that no candidate could satisfy (too few pictures for its own bound), or whose limits contradict each
       other, is refused when it is read.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from validation.attacks.budget import CONTROL_ATTEMPTS, AttackName, Budget, drawn_pictures
from validation.documents import parse_document, read_document
from validation.errors import PolicyError
from validation.probe_packs import OWN_PACKS, pack_name
from validation.statistics import Sampling, pictures_needed


class Policy(BaseModel):
    """Limits, margins and numbers of pictures. Rates and margins are fractions of pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    residual_limit: float = Field(
        default=0.10,
        gt=0,
        lt=1,
        description="fraction of a target's pictures that may still show it; the upper bound must not exceed it",
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="confidence of every one-sided bound")
    retained_margin: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="loss of paired accuracy, as a fraction, that is still acceptable on retained concepts and styles",
    )
    retained_concept_margin: float | None = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="floor for each retained concept and style on its own: fraction of its pairs of pictures that may "
        "be lost (the base shows it, the candidate does not) before it fails the candidate whatever the others do; a "
        "concept that is drawn as often as before never loses more than 0.25 by chance; null sets no floor",
    )
    hidden_margin: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="the same loss as `retained_margin`, on hidden concepts; null reports them and gates nothing",
    )
    sampling: Sampling = Field(
        default="sequential",
        description="sequential: a target's pictures are drawn in stages until its bounds decide, at most as many as "
        "planned; fixed: all that are planned",
    )
    stage_size: int = Field(
        default=8,
        ge=1,
        description="candidate pictures per target between two looks, with sequential sampling; fewer where fewer "
        "could already show the limit",
    )
    probes_per_target: int = Field(
        default=158, ge=1, description="candidate pictures per target; at most, with sequential sampling"
    )
    quality_margin: float | None = Field(
        default=None,
        gt=0,
        lt=2,
        description="loss of fit between picture and prompt (cosine of the image-text model) that is still acceptable "
        "on retained concepts and styles; the scale depends on that model, so there is no default: null reports it and "
        "gates nothing",
    )
    probes_per_target_base: int = Field(default=16, ge=1, description="base pictures per target, the positive control")
    further_packs: dict[str, int] = Field(
        default={},
        description="candidate pictures per target asked for by further probe packs: number by the name of a pack that "
        "comes with the judge, or by the path of another",
    )
    probes_per_retained: int = Field(default=8, ge=1, description="pictures per retained concept, of each model")
    probes_per_hidden: int = Field(
        default=8, ge=0, description="pictures per hidden concept, of each model; 0 renders and reports none"
    )
    probes_per_style: int = Field(default=8, ge=1, description="pictures per retained style, of each model")
    positive_control_floor: float = Field(
        default=0.5, gt=0, le=1, description="fraction of a target's base pictures in which it must be found"
    )
    negative_control_ceiling: float = Field(
        default=0.05, ge=0, lt=1, description="fraction of the base's other pictures in which a target may be found"
    )
    blank_picture_ceiling: float = Field(
        default=0.0, ge=0, lt=1, description="fraction of a model's pictures that may be a single flat colour"
    )
    attacks: dict[AttackName, Annotated[Budget, Field(strict=False)]] = Field(
        default={},
        description="attacks on every target, with what each may spend: {inversion: {steps: 300, pictures: 32}}; they "
        "take minutes per target, so none is run by default",
    )
    robustness_limit: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="fraction of pictures in which an attack may bring a target back; the upper bound of each attack "
        "on each target must not exceed it; null reports attacks and gates nothing",
    )
    requires_integrity: bool = Field(
        default=True, description="without the caller's word on the candidate's bytes the verdict is inconclusive"
    )
    first_seed: int = Field(default=1_000_000, ge=0, description="seed of the first probe; later ones count up")

    @model_validator(mode="after")
    def _can_be_satisfied(self) -> "Policy":
        needed = pictures_needed(0, limit=self.residual_limit, confidence=self.confidence, sampling=self.sampling)
        counts = {f"further_packs.{name}": count for name, count in self.further_packs.items()}
        for name, count in {"probes_per_target": self.probes_per_target, **counts}.items():
            if count < needed:
                raise ValueError(
                    f"expected {name} of at least {needed}, found {count}: with fewer, not even zero hits show a rate "
                    f"of at most {self.residual_limit:g} at confidence {self.confidence:g} ({self.sampling} sampling); "
                    "raise it or the limit"
                )
        if self.probes_per_target_base > self.probes_per_target:
            raise ValueError(
                f"expected probes_per_target_base of at most probes_per_target ({self.probes_per_target}), found "
                f"{self.probes_per_target_base}: the control uses the same probes; lower it"
            )
        if self.sampling == "sequential" and self.stage_size > self.probes_per_target:
            raise ValueError(
                f"expected stage_size of at most probes_per_target ({self.probes_per_target}), found "
                f"{self.stage_size}: a target would be looked at once, which is fixed sampling; lower it or say so"
            )
        if self.retained_concept_margin is not None and self.retained_concept_margin < self.retained_margin:
            raise ValueError(
                f"expected retained_concept_margin of at least retained_margin ({self.retained_margin:g}), found "
                f"{self.retained_concept_margin:g}: one concept would have to lose less than all may; raise it"
            )
        self._refuse_vain_attacks()
        names = [pack_name(source) for source in self.further_packs]
        if repeated := sorted({name for name in names if name in OWN_PACKS or names.count(name) > 1}):
            raise ValueError(
                f"expected further packs of different names, none of them {' or '.join(OWN_PACKS)}, found {repeated}; "
                "rename or remove one"
            )
        return self

    def _refuse_vain_attacks(self) -> None:
        if self.robustness_limit is None:
            return
        if not self.attacks:
            raise ValueError(
                f"expected attacks with robustness_limit {self.robustness_limit:g}, found none: nothing would be "
                "gated; name some or set the limit to null"
            )
        needed = pictures_needed(0, limit=self.robustness_limit, confidence=self.confidence)
        for name, budget in self.attacks.items():
            if drawn_pictures(budget) < needed:
                raise ValueError(
                    f"expected attacks.{name}.pictures of at least {needed}, found {drawn_pictures(budget)} (a "
                    f"multiple of {CONTROL_ATTEMPTS} is drawn): with fewer, not even zero hits show a rate of at most "
                    f"{self.robustness_limit:g} at confidence {self.confidence:g}; raise it or the limit"
                )

    @property
    def further_pack_names(self) -> list[str]:
        """Returns the names of the further packs, as probes and gates record them."""
        return [pack_name(source) for source in self.further_packs]


def parse_policy(document: Any, *, source: str) -> Policy:
    """Returns the policy in a parsed document.

    Raises:
        PolicyError: A key is unknown or a value is out of range; every fault is named.
    """
    return parse_document(
        Policy, document, source=source, what="policy", example="residual_limit: 0.1", error=PolicyError
    )


def load_policy(path: Path) -> Policy:
    """Reads a policy from a YAML file; a key that is left out takes its documented default.

    Raises:
        PolicyError: The file cannot be read or does not hold a valid policy.
    """
    return parse_policy(read_document(path, error=PolicyError), source=str(path))
