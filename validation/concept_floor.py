"""The floor under each retained concept: no one of them can hide in a good mean.

Guarantees:
    1. Every concept is tested on its own pairs, by an exact bound.
    2. The confidence is shared out over all concepts (Bonferroni), so that an unharmed candidate fails on any no
       more often than the policy says.
"""

from dataclasses import dataclass

import pandas as pd

from validation.formats import exact_percent
from validation.judgement import GateResult, Verdict
from validation.policy import Policy
from validation.statistics import lower_bound, pictures_needed, upper_bound

_NAMED = 3
"""Concepts that a reason names."""


def concept_floor_gate(role: str, differences: pd.Series, *, margin: float, policy: Policy) -> GateResult:
    """Says whether any one of a role's concepts is shown to have fallen through its floor; the mean does not matter.

    A pair is lost when the base shows the concept and the candidate does not. A concept fails when the exact lower
    bound (Clopper and Pearson) of its share of lost pairs is above the margin, each bound at
    `1 - (1 - confidence) / concepts`. Gained pairs make up for nothing, and need not: a concept drawn at the same rate
    `r` by both models loses at most `r (1 - r) <= 1/4` of its pairs, even where the models draw independently.

    Passed means that every concept's upper bound is within the margin, each at the policy's confidence. Too few
    pictures to show either is no failure: the gate is then inconclusive, says so, and does not count.

    Args:
        role: `retained` or `style`.
        differences: Candidate hit minus base hit per pair, indexed by concept.
        margin: Share of a concept's pairs that may be lost.
        policy: Where the confidence comes from.
    """
    losses = _losses(differences, confidence=policy.confidence)
    fallen = [loss for loss in losses if loss.lower > margin]
    unsettled = [loss for loss in losses if loss.lower <= margin < loss.upper]
    verdict: Verdict = "failed" if fallen else "inconclusive" if unsettled or not losses else "passed"
    found = f"{len(fallen)} of {len(losses)} shown to have lost more than {exact_percent(margin)} of their pairs"
    if fallen:
        found += f" ({', '.join(f'{loss.concept} {loss.lost} of {loss.pairs}' for loss in fallen[:_NAMED])})"
    if unsettled:
        needed = pictures_needed(0, limit=margin, confidence=policy.confidence)
        found += f"; {len(unsettled)} with too few pairs to show either: without any loss it takes {needed}"
    return GateResult(
        gate="concept floor",
        verdict=verdict,
        reason=f"{role} concepts: {found}; exact bounds, {exact_percent(policy.confidence)} over all of them",
        role=role,
        estimate=losses[0].lost / losses[0].pairs if losses else None,
        lower=losses[0].lower if losses else None,
        upper=max((loss.upper for loss in losses), default=None),
        limit=margin,
        pictures=sum(loss.pairs for loss in losses),
        is_gated=verdict != "inconclusive",
    )


@dataclass(frozen=True)
class _Loss:
    """Pairs of one concept that the base shows and the candidate does not, with the bounds of their share."""

    concept: str
    lost: int
    pairs: int
    lower: float
    upper: float


def _losses(differences: pd.Series, *, confidence: float) -> list[_Loss]:
    """Returns every concept's loss, the surest first; the lower bounds hold at `confidence` all together."""
    counts = [(str(name), int((own < 0).sum()), len(own)) for name, own in differences.groupby(level=0)]
    together = 1 - (1 - confidence) / max(len(counts), 1)
    losses = [
        _Loss(
            concept,
            lost,
            pairs,
            lower=lower_bound(lost, pairs, confidence=together),
            upper=upper_bound(lost, pairs, confidence=confidence),
        )
        for concept, lost, pairs in counts
    ]
    return sorted(losses, key=lambda loss: (-loss.lower, loss.concept))
