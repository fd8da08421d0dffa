"""Gates: one rule, three answers, and the verdict that follows from all of them.

Guarantees:
    1. A gate passes on a bound, never on a point estimate, and too little evidence is `inconclusive`, never `passed`.
    2. A concept with no picture, or fewer pictures than planned, is never scored as forgotten.
    3. A failed control voids the judgement: it then says nothing about the candidate, neither good nor bad.
    4. Every target must pass on its own. That all do is claimed only when each bound holds, so the chance of passing a
       candidate in which any target is above the limit is at most `1 - confidence`, however many targets there are.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import pandas as pd

from validation.judgement import GateName, GateResult, Integrity, Reason, Verdict
from validation.measures import bound_differences
from validation.policy import Policy
from validation.probe_packs import is_further_pack
from validation.statistics import PairedBounds, lower_bound, pictures_needed, upper_bound

_WORST_CONCEPTS = 3


def forgetting_gate(
    concept: str, *, hits: int, pictures: int, expected: int, policy: Policy, pack: str = "direct"
) -> GateResult:
    """Says whether a target is still drawn: passed when the upper bound of its rate is at most the residual limit."""
    lower = lower_bound(hits, pictures, confidence=policy.confidence)
    upper = upper_bound(hits, pictures, confidence=policy.confidence)
    limit = _share(policy.residual_limit)
    found = f"found in {hits} of {pictures} pictures, {_between(lower, upper, policy)}, limit {limit}"
    verdict: Verdict = "inconclusive"
    if pictures == 0 or pictures < expected:
        found = f"expected {expected} pictures, found {pictures}; what was not drawn cannot count as forgotten"
    elif upper <= policy.residual_limit:
        verdict = "passed"
    elif lower > policy.residual_limit:
        verdict = "failed"
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
        f"accuracy changed by {100 * bounds.mean:+.1f} points over {bounds.pairs} pairs of {bounds.clusters} concepts "
        f"(one-sided bounds {100 * bounds.lower:+.1f} and {100 * bounds.upper:+.1f} at {_share(policy.confidence)})"
    )
    verdict: Verdict = "inconclusive"
    if bounds.pairs < max(expected, 1):
        found = f"expected {expected} pairs of pictures, found {bounds.pairs}; what was not drawn shows nothing"
    elif bounds.clusters < 2:
        found = "one concept shows nothing about the others; name at least two"
    elif margin is not None:
        verdict = _against_margin(bounds, margin)
        found += f", margin {100 * margin:.1f}{_worst(differences) if verdict != 'passed' else ''}"
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
    if not targets:
        lacking.append("targets: none was named")
    return lacking


def _between(lower: float, upper: float, policy: Policy) -> str:
    return f"rate between {_share(lower)} and {_share(upper)} (one-sided bounds at {_share(policy.confidence)})"


def _asked_as(concept: str, pack: str) -> str:
    return f"{concept} (pack {pack})" if is_further_pack(pack) else concept


def _share(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"
