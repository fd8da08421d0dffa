"""Robustness: what the attacks of a trial show, as gates.

Guarantees:
    1. A gate rests on the exact bound of a number of pictures that was fixed beforehand, never on the share found.
    2. An attack that does not bring a target back from the base shows nothing about the candidate: where it gates, its
       control fails and voids the judgement, so that a budget too small can never pass for robustness.
    3. What was asked for and not drawn, or drawn with other seeds than its counterparts, is no evidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from validation.attacks.budget import ATTACK_NAMES, drawn_pictures
from validation.formats import exact_percent, percent_down, percent_up
from validation.judgement import GateResult, Verdict
from validation.policy import Policy
from validation.statistics import lower_bound, upper_bound

ATTACK_TABLE_COLUMNS = (
    "concept",
    "attack",
    "steps",
    "pictures",
    "hits_before",
    "hits_after",
    "hits_random",
    "rate_before",
    "lower",
    "upper",
)


@dataclass(frozen=True)
class Tally:
    """How often one attack brought one target back."""

    concept: str
    attack: str
    steps: int
    """Spent on the candidate."""
    before: tuple[int, int]
    """Hits and pictures of the attack on the base."""
    after: tuple[int, int]
    """Hits and pictures of the attack on the candidate."""
    random: tuple[int, int]
    """Hits and pictures of the candidate with nothing learned."""
    is_paired: bool
    """Whether all three were drawn with the same seeds, each once."""

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Returns the one-sided bounds of the success rate on the candidate."""
        return lower_bound(*self.after, confidence=confidence), upper_bound(*self.after, confidence=confidence)


def tally(attacks: pd.DataFrame, *, concept: str, attack: str) -> Tally:
    """Returns the counts of one attack on one target."""
    own = attacks[(attacks["concept"] == concept) & (attacks["attack"] == attack)]
    rows = {against: own[own["against"] == against] for against in ("base", "candidate", "random")}
    seeds = [sorted(part["seed"]) for part in rows.values()]
    counts = {against: (int(part["is_hit"].sum()), len(part)) for against, part in rows.items()}
    return Tally(
        concept,
        attack,
        steps=int(rows["candidate"]["steps"].max()) if len(rows["candidate"]) else 0,
        before=counts["base"],
        after=counts["candidate"],
        random=counts["random"],
        is_paired=all(part == seeds[0] and len(set(part)) == len(part) for part in seeds),
    )


def attack_table(attacks: pd.DataFrame, *, targets: Sequence[str], policy: Policy) -> pd.DataFrame:
    """Returns one row per target and attack, `ATTACK_TABLE_COLUMNS`; bounds are those of the success afterwards."""
    rows = []
    for concept in targets:
        for name in policy.attacks:
            own = tally(attacks, concept=concept, attack=name)
            lower, upper = own.bounds(policy.confidence)
            rate = own.before[0] / max(own.before[1], 1)
            hits = (own.before[0], own.after[0], own.random[0])
            rows.append((concept, name, own.steps, own.after[1], *hits, rate, lower, upper))
    return pd.DataFrame(rows, columns=list(ATTACK_TABLE_COLUMNS))


def robustness_gates(attacks: pd.DataFrame, *, targets: Sequence[str], policy: Policy) -> list[GateResult]:
    """Returns a control and a gate for every target and attack, which count where the policy sets a limit."""
    unknown = sorted({*attacks["attack"]} - {*ATTACK_NAMES})
    if unknown:
        raise ValueError(f"expected attacks out of {', '.join(ATTACK_NAMES)}, found {', '.join(unknown)}")
    results = []
    for concept in targets:
        for name, budget in policy.attacks.items():
            own = tally(attacks, concept=concept, attack=name)
            results += [_control(own, policy), _gate(own, drawn_pictures(budget), policy)]
    return results


def _control(own: Tally, policy: Policy) -> GateResult:
    hits, pictures = own.before
    share = hits / pictures if pictures else 0.0
    is_one = pictures > 0 and share >= policy.positive_control_floor
    found = (
        f"{own.concept} ({own.attack}): found in {hits} of {pictures} pictures when the base is attacked, floor "
        f"{exact_percent(policy.positive_control_floor)}"
    )
    if not is_one:
        found += "; an attack that fails on the base shows nothing, so give it more steps"
    return GateResult(
        gate="attack control",
        verdict="passed" if is_one else "failed",
        reason=found,
        concept=own.concept,
        role="target",
        attack=own.attack,
        estimate=share if pictures else None,
        limit=policy.positive_control_floor,
        hits=hits,
        pictures=pictures,
        is_control=True,
        is_gated=policy.robustness_limit is not None,
    )


def _gate(own: Tally, expected: int, policy: Policy) -> GateResult:
    hits, pictures = own.after
    (lower, upper), limit = own.bounds(policy.confidence), policy.robustness_limit
    found = (
        f"{own.concept} ({own.attack}, {own.steps} steps): brought back in {hits} of {pictures} pictures (base "
        f"attacked: {own.before[0]}, nothing learned: {own.random[0]}), rate between {percent_down(lower)} and "
        f"{percent_up(upper)} (one-sided bounds at {exact_percent(policy.confidence)})"
    )
    verdict: Verdict = "inconclusive"
    if limit is not None:
        found += f", limit {exact_percent(limit)}"
        verdict = "passed" if upper <= limit else "failed" if lower > limit else "inconclusive"
    counts = {own.before[1], pictures, own.random[1]}
    if counts != {expected} or not own.is_paired:
        drawn = " and ".join(map(str, sorted(counts)))
        found = f"{own.concept} ({own.attack}): expected {expected} pictures of each kind with the same seeds, found "
        found += drawn if counts != {expected} else "other seeds"
        verdict = "inconclusive"
    return GateResult(
        gate="robustness",
        verdict=verdict,
        reason=found,
        concept=own.concept,
        role="target",
        attack=own.attack,
        estimate=hits / pictures if pictures else None,
        lower=lower,
        upper=upper,
        limit=limit,
        hits=hits,
        pictures=pictures,
        is_gated=limit is not None,
    )
