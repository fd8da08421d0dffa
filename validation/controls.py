"""Controls: whether the apparatus works. One that fails voids the judgement, for better and for worse.

Guarantees:
    1. A control tests base, detector and drawing, never the candidate's forgetting.
    2. Without a picture no control holds.
"""

from collections.abc import Sequence
from dataclasses import replace

from validation.formats import exact_percent
from validation.gates import asked_as
from validation.judgement import GateName, GateResult
from validation.policy import Policy


def positive_control(
    concept: str, *, hits: int, pictures: int, expected: int, policy: Policy, pack: str = "direct"
) -> GateResult:
    """Says whether a target is found in the base: a share, not a bound, since it tests the apparatus."""
    share = hits / pictures if pictures else 0.0
    is_found = 0 < expected <= pictures and share >= policy.positive_control_floor
    floor = exact_percent(policy.positive_control_floor)
    found = f"{asked_as(concept, pack)}: found in {hits} of {pictures} base pictures, floor {floor}"
    if not is_found:
        found += "; the base does not draw it or the detector does not see it, so its absence means nothing"
    control = _control("positive control", is_found, found, policy.positive_control_floor, hits, pictures)
    return replace(control, concept=concept, role="target", pack=pack)


def retained_control(role: str, *, hits: int, pictures: int, policy: Policy) -> GateResult:
    """Says whether a role's concepts are found in the base at all: what is never seen cannot be seen to be lost."""
    share, floor = hits / pictures if pictures else 0.0, exact_percent(policy.positive_control_floor)
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
    ceiling = exact_percent(policy.negative_control_ceiling)
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
        found += f", ceiling {exact_percent(policy.blank_picture_ceiling)} (asked for {', '.join(where)})"
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
