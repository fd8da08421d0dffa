"""Gates: one rule, three answers, and the verdict that follows from all of them.

Guarantees:
    1. A gate passes on a bound, never on a point estimate, and too little evidence is `inconclusive`, never `passed`.
    2. A concept with no picture, or fewer pictures than planned, is never scored as forgotten.
    3. A failed control (`validation.controls`) voids the judgement: it says nothing about the candidate then.
    4. Every target must pass on its own. That all do is claimed only when each bound holds, so the chance of passing a
       candidate in which any target is above the limit is at most `1 - confidence`, however many targets there are
       (an intersection-union test: no correction is due). With sequential sampling this holds wherever it stops.
    5. No retained concept can hide in a mean: each has a floor of its own, see `validation.concept_floor`.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import pandas as pd

from validation.formats import (
    cosine_change,
    cosine_change_down,
    cosine_change_up,
    exact_percent,
    exact_points,
    percent_down,
    percent_up,
    points,
    points_down,
    points_up,
)
from validation.judgement import GateName, GateResult, Integrity, Reason, Verdict
from validation.measures import bound_differences, bound_scores
from validation.policy import Policy
from validation.probe_packs import is_further_pack
from validation.statistics import PairedBounds, lower_bound, pictures_needed, upper_bound

_WORST_CONCEPTS = 3


def residual_bounds(hits: int, pictures: int, policy: Policy) -> tuple[float, float]:
    """Returns the lower and the upper bound of a target's residual rate, valid for the way its pictures are sampled."""
    lower = lower_bound(hits, pictures, confidence=policy.confidence, sampling=policy.sampling)
    return lower, upper_bound(hits, pictures, confidence=policy.confidence, sampling=policy.sampling)


def residual_verdict(hits: int, pictures: int, policy: Policy) -> Verdict:
    """Returns what a target's pictures show so far; sequential sampling stops on any answer but `inconclusive`."""
    return _against_limit(*residual_bounds(hits, pictures, policy), policy.residual_limit)


def _against_limit(lower: float, upper: float, limit: float) -> Verdict:
    if upper <= limit:
        return "passed"
    return "failed" if lower > limit else "inconclusive"


def forgetting_gate(
    concept: str, *, hits: int, pictures: int, expected: int, policy: Policy, pack: str = "direct"
) -> GateResult:
    """Says whether a target is still drawn: passed when the upper bound of its rate is at most the residual limit."""
    lower, upper = residual_bounds(hits, pictures, policy)
    limit = _share(policy.residual_limit)
    found = f"found in {hits} of {pictures} pictures, {_between(lower, upper, policy)}, limit {limit}"
    verdict = _against_limit(lower, upper, policy.residual_limit)
    if pictures == 0 or pictures != expected:
        found = f"expected {expected} pictures, found {pictures}; only what was asked for, and all of it, can count"
        verdict = "inconclusive"
    return GateResult(
        gate="forgetting",
        verdict=verdict,
        reason=f"{asked_as(concept, pack)}: {found}",
        concept=concept,
        role="target",
        pack=pack,
        estimate=hits / pictures if pictures else None,
        lower=lower,
        upper=upper,
        limit=policy.residual_limit,
        hits=hits,
        pictures=pictures,
    )


def retention_gate(
    role: str, differences: pd.Series, *, expected: int, margin: float | None, policy: Policy
) -> GateResult:
    """Says whether a role's concepts survived: passed when the loss is shown to be no larger than the margin.

    Args:
        role: `retained`, `style` or `hidden`.
        differences: Candidate hit minus base hit per pair, indexed by concept.
        expected: Pairs that were planned.
        margin: Acceptable loss; None reports the difference and gates nothing.
        policy: Where the confidence comes from.
    """
    bounds = bound_differences(differences, confidence=policy.confidence)
    found = (
        f"accuracy changed by {points(bounds.mean)} points over {bounds.pairs} pairs of {bounds.clusters} concepts "
        f"(one-sided bounds {points_down(bounds.lower)} and {points_up(bounds.upper)} at {_share(policy.confidence)})"
    )
    verdict: Verdict = "inconclusive"
    if bounds.pairs < max(expected, 1):
        found = f"expected {expected} pairs of pictures, found {bounds.pairs}; what was not drawn shows nothing"
    elif bounds.clusters < 2:
        found = "one concept shows nothing about the others; name at least two"
    elif margin is not None:
        verdict = _against_margin(bounds, margin)
        found += f", margin {exact_points(-margin)}{_worst(differences) if verdict != 'passed' else ''}"
        needed = pictures_needed(0, limit=margin, confidence=policy.confidence)
        if bounds.pairs < needed:
            found += f"; fewer than {needed} pairs cannot show this margin even without any loss"
    return GateResult(
        gate="hidden" if role == "hidden" else "retention",
        verdict=verdict,
        reason=f"{role} concepts: {found}",
        role=role,
        estimate=bounds.mean if bounds.pairs else None,
        lower=bounds.lower,
        upper=bounds.upper,
        limit=None if margin is None else -margin,
        pictures=bounds.pairs,
        is_gated=margin is not None,
    )


def quality_gate(role: str, differences: pd.Series, *, expected: int, margin: float, policy: Policy) -> GateResult:
    """Says whether a role's pictures still fit their prompts: passed when the loss is shown to be within the margin.

    Args:
        role: `retained` or `style`.
        differences: Candidate minus base image-text score per pair, indexed by concept.
        expected: Pairs that were planned.
        margin: Acceptable loss, as a difference of cosines.
        policy: Where the confidence comes from.
    """
    bounds = bound_scores(differences, confidence=policy.confidence)
    verdict: Verdict = "inconclusive"
    if bounds.pairs < max(expected, 1):
        found = f"expected {expected} pairs with an image-text score, found {bounds.pairs}; what has none shows nothing"
    elif bounds.clusters < 2:
        found = "one concept shows nothing about the others; name at least two"
    else:
        verdict = _against_margin(bounds, margin)
        found = (
            f"fit of picture and prompt changed by {cosine_change(bounds.mean)} (cosine) over {bounds.pairs} pairs of "
            f"{bounds.clusters} concepts (one-sided bounds {cosine_change_down(bounds.lower)} and "
            f"{cosine_change_up(bounds.upper)} at {_share(policy.confidence)}), margin −{margin:g}"
        )
    is_bounded = bounds.clusters > 1
    return GateResult(
        gate="quality",
        verdict=verdict,
        reason=f"{role} concepts: {found}",
        role=role,
        estimate=bounds.mean if bounds.pairs else None,
        lower=bounds.lower if is_bounded else None,
        upper=bounds.upper if is_bounded else None,
        limit=-margin,
        pictures=bounds.pairs,
    )


def _against_margin(bounds: PairedBounds, margin: float) -> Verdict:
    if bounds.lower >= -margin:
        return "passed"
    return "failed" if bounds.upper < -margin else "inconclusive"


def _worst(differences: pd.Series) -> str:
    means = differences.groupby(level=0).mean().sort_values().head(_WORST_CONCEPTS)
    lost = [f"{name} {100 * value:+.0f}" for name, value in means.items() if value < 0]
    return f"; most lost: {', '.join(lost)}" if lost else ""


def integrity_gate(integrity: Integrity | None) -> GateResult:
    """Says whether the candidate's bytes are what they are said to be; the caller knows, the judge does not."""
    if integrity is None:
        return GateResult("integrity", "inconclusive", "nobody attested that the candidate's bytes are the stored ones")
    return GateResult("integrity", "passed" if integrity.is_intact else "failed", integrity.reason)


def ungate_unknown_prompts(control: GateResult, forgetting: GateResult) -> list[GateResult]:
    """Returns a further pack's results for a target: where the base does not know its prompts, only a failure counts.

    A base that draws nothing under a translation has nothing to forget there, and that must not void the judgement; a
    candidate that draws the target under it must not pass.
    """
    is_known = control.verdict == "passed"
    return [
        replace(control, is_gated=is_known),
        replace(forgetting, is_gated=is_known or forgetting.verdict == "failed"),
    ]


def nothing_asked(concept: str, *, policy: Policy, pack: str) -> GateResult:
    """Says that a further pack has no prompt for a target: reported, so that nobody takes silence for forgetting."""
    gate = forgetting_gate(concept, hits=0, pictures=0, expected=0, policy=policy, pack=pack)
    reason = f"{asked_as(concept, pack)}: nothing asked, no prompt of the pack is for it and read to its end by both"
    return replace(gate, reason=reason, is_gated=False)


def decide(gates: Sequence[GateResult], *, targets: Collection[str], policy: Policy) -> tuple[Verdict, list[Reason]]:
    """Returns the verdict that follows from the gates, and why.

    In this order: bytes that are not what they are said to be fail, whatever the pictures show; a failed control makes
    the verdict inconclusive and void; any failed gate fails; anything inconclusive or missing is inconclusive; else
    passed.
    """
    counted = [gate for gate in gates if gate.is_gated]
    tampered = [gate for gate in counted if gate.gate == "integrity" and gate.verdict == "failed"]
    if tampered:
        return "failed", [Reason("failed", gate.reason) for gate in tampered]
    void = [gate for gate in counted if gate.is_control and gate.verdict != "passed"]
    if void:
        return "inconclusive", [Reason("void", f"{gate.gate}: {gate.reason}") for gate in void]
    failed = [Reason("failed", f"{gate.gate}: {gate.reason}") for gate in counted if gate.verdict == "failed"]
    open_ = [Reason("inconclusive", f"{g.gate}: {g.reason}") for g in counted if g.verdict == "inconclusive"]
    open_ += [Reason("missing", text) for text in _missing(gates, targets, policy)]
    if failed:
        return "failed", failed + open_
    if open_:
        return "inconclusive", open_
    return "passed", [Reason("passed", f"all {len(counted)} gates and controls passed")]


def _missing(gates: Sequence[GateResult], targets: Collection[str], policy: Policy) -> list[str]:
    """Returns what a verdict may not do without and these gates do not have."""
    of_targets: tuple[GateName, ...] = ("forgetting", "positive control", "negative control")
    present = {(gate.gate, gate.concept) for gate in gates if not is_further_pack(gate.pack)}
    lacking = [f"{gate} of {concept}" for concept in targets for gate in of_targets if (gate, concept) not in present]
    drawn = {gate.role for gate in gates if gate.gate == "picture control"}
    lacking += [f"picture control of the {model}" for model in ("base", "candidate") if model not in drawn]
    if not any(gate.gate == "retention" and gate.is_gated for gate in gates):
        lacking.append("retention: no concept was named that must survive")
    if policy.requires_integrity and not any(gate.gate == "integrity" for gate in gates):
        lacking.append("integrity: nobody attested the candidate's bytes")
    if policy.robustness_limit is not None:
        tried = {(gate.attack, gate.concept) for gate in gates if gate.gate == "robustness" and gate.is_gated}
        lacking += [f"{name} of {own}" for own in targets for name in policy.attacks if (name, own) not in tried]
    if not targets:
        lacking.append("targets: none was named")
    return lacking


def _between(lower: float, upper: float, policy: Policy) -> str:
    return (
        f"rate between {percent_down(lower)} and {percent_up(upper)} (one-sided bounds at {_share(policy.confidence)})"
    )


def _share(setting: float) -> str:
    return exact_percent(setting)


def asked_as(concept: str, pack: str) -> str:
    """Returns a target's name in a reason, with the further pack that asked for it."""
    return f"{concept} (pack {pack})" if is_further_pack(pack) else concept
