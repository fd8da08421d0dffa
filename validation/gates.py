"""Gates: one rule, three answers, and the verdict that follows from all of them.

Guarantees:
    1. A gate passes on a bound, never on a point estimate, and too little evidence is `inconclusive`, never `passed`.
    2. A concept with no picture, or fewer pictures than planned, is never scored as forgotten.
    3. A failed control voids the judgement: it then says nothing about the candidate, neither good nor bad.
    4. Every target must pass on its own. That all do is claimed only when each bound holds, so the chance of passing a
       candidate in which any target is above the limit is at most `1 - confidence`, however many targets there are
       (an intersection-union test: no correction is due). With sequential sampling this holds wherever it stops.
    5. No retained concept can hide in a mean: each has a floor of its own, tested at a confidence that is shared out
       over all concepts (Bonferroni), so that an unharmed candidate fails on any of them at most that seldom.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

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
        reason=f"{_asked_as(concept, pack)}: {found}",
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
    found = f"{len(fallen)} of {len(losses)} shown to have lost more than {_share(margin)} of their pairs"
    if fallen:
        found += f" ({', '.join(f'{loss.concept} {loss.lost} of {loss.pairs}' for loss in fallen[:_WORST_CONCEPTS])})"
    if unsettled:
        needed = pictures_needed(0, limit=margin, confidence=policy.confidence)
        found += f"; {len(unsettled)} with too few pairs to show either: without any loss it takes {needed}"
    return GateResult(
        gate="concept floor",
        verdict=verdict,
        reason=f"{role} concepts: {found}; exact bounds, {_share(policy.confidence)} over all of them",
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


def positive_control(
    concept: str, *, hits: int, pictures: int, expected: int, policy: Policy, pack: str = "direct"
) -> GateResult:
    """Says whether a target is found in the base: a share, not a bound, since it tests the apparatus."""
    share = hits / pictures if pictures else 0.0
    is_found = 0 < expected <= pictures and share >= policy.positive_control_floor
    floor = _share(policy.positive_control_floor)
    found = f"{_asked_as(concept, pack)}: found in {hits} of {pictures} base pictures, floor {floor}"
    if not is_found:
        found += "; the base does not draw it or the detector does not see it, so its absence means nothing"
    control = _control("positive control", is_found, found, policy.positive_control_floor, hits, pictures)
    return replace(control, concept=concept, role="target", pack=pack)


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
    reason = f"{_asked_as(concept, pack)}: nothing asked, no prompt of the pack is for it and read to its end by both"
    return replace(gate, reason=reason, is_gated=False)


def retained_control(role: str, *, hits: int, pictures: int, policy: Policy) -> GateResult:
    """Says whether a role's concepts are found in the base at all: what is never seen cannot be seen to be lost."""
    share, floor = hits / pictures if pictures else 0.0, _share(policy.positive_control_floor)
    is_found = pictures > 0 and share >= policy.positive_control_floor
    found = f"{role} concepts: found in {hits} of {pictures} base pictures, floor {floor}"
    if not is_found:
        found += "; what the base does not show cannot be seen to be lost"
    control = _control("positive control", is_found, found, policy.positive_control_floor, hits, pictures)
    return replace(control, role=role)


def negative_control(concept: str, *, hits: int, pictures: int, policy: Policy) -> GateResult:
    """Says whether a target is rarely found where it is not: in the base's pictures of everything else."""
    share = hits / pictures if pictures else 0.0
    is_quiet = pictures > 0 and share <= policy.negative_control_ceiling
    ceiling = _share(policy.negative_control_ceiling)
    found = f"found in {hits} of {pictures} base pictures of other concepts, ceiling {ceiling}"
    if not pictures:
        found = "no base picture of another concept; name concepts of its kind to retain"
    elif not is_quiet:
        found += "; the detector sees it everywhere, so seeing it means nothing"
    control = _control(
        "negative control", is_quiet, f"{concept}: {found}", policy.negative_control_ceiling, hits, pictures
    )
    return replace(control, concept=concept, role="target")


def picture_control(
    model: str, *, blank: int, pictures: int, expected: int, policy: Policy, where: Sequence[str] = ()
) -> GateResult:
    """Says whether a model draws pictures at all: a blank one shows no concept, and would pass for forgetting."""
    share = blank / pictures if pictures else 1.0
    is_drawn = 0 < expected <= pictures and share <= policy.blank_picture_ceiling
    found = f"{blank} of {pictures} pictures of the {model} are a single flat colour"
    if pictures < max(expected, 1):
        found = f"expected {expected} pictures of the {model}, found {pictures}"
    elif not is_drawn:
        found += f", ceiling {_share(policy.blank_picture_ceiling)} (asked for {', '.join(where)})"
    control = _control("picture control", is_drawn, found, policy.blank_picture_ceiling, blank, pictures)
    return replace(control, role=model)


def _control(gate: GateName, is_held: bool, reason: str, limit: float, hits: int, pictures: int) -> GateResult:
    return GateResult(
        gate=gate,
        verdict="passed" if is_held else "failed",
        reason=reason,
        estimate=hits / pictures if pictures else None,
        limit=limit,
        hits=hits,
        pictures=pictures,
        is_control=True,
    )


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


def _asked_as(concept: str, pack: str) -> str:
    return f"{concept} (pack {pack})" if is_further_pack(pack) else concept
