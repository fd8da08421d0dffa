"""What an edit did beside forgetting, as values for the template: what targets became, what was damaged, how pictures
moved.

Guarantees:
    1. Every figure comes from the judgement; nothing is measured anew, and no picture is read.
    2. A change of a whole set of pictures is shown beside what other seeds alone do.
"""

from dataclasses import dataclass

from markupsafe import Markup

from validation.formats import cosine_change, cosine_change_down, cosine_change_up, count, percent, points, score
from validation.interference import find_interference, target_replacements
from validation.judgement import Discrepancy, Drift, GateResult, Judgement
from validation.measures import bound_scores, score_differences
from validation.report import plots

ROLE_TITLES = {"retained": "Retained concepts", "style": "Styles", "hidden": "Hidden concepts"}
_LABELS_NAMED = 4
_LARGEST_SHOWN = 10
_DAMAGES_SAID = 3


@dataclass(frozen=True)
class Replacement:
    """What is seen in a target's pictures now."""

    target: str
    pictures: int
    seen: str
    plot: Markup


@dataclass(frozen=True)
class Damage:
    """A concept that lost pictures, and the target that went the same way."""

    concept: str
    role: str
    lost: str
    change: str
    instead: str
    because: str
    """The target, with the share of the lost pictures that it accounts for."""


@dataclass(frozen=True)
class Fit:
    """How well a role's pictures fit their prompts, before and after."""

    title: str
    before: str
    after: str
    change: str
    between: str
    gate: GateResult | None
    """None where the policy sets no margin, or none for this role."""


@dataclass(frozen=True)
class Move:
    """How far a role's pictures moved as a whole, beside what other seeds do."""

    title: str
    cmmd: str
    other_seeds: str
    reading: str


def replacements(judgement: Judgement) -> list[Replacement]:
    """Returns what every target became, in the protocol's order."""
    rows = []
    for target, seen in target_replacements(judgement.measures).items():
        shares = [(label, number / seen.total()) for label, number in seen.most_common(_LABELS_NAMED)]
        rest = len(seen) - len(shares)
        named = [f"{label} {percent(share)}" for label, share in shares]
        if rest:
            named.append(f"{count(rest, 'other')} {percent(1 - sum(share for _, share in shares))}")
        text = ", ".join(named)
        plot = plots.shares([share for _, share in shares], label=f"{target}: {text}")
        rows.append(Replacement(target, seen.total(), text, plot))
    return rows


def damages(judgement: Judgement) -> list[Damage]:
    """Returns who lost pictures without being a target, most damaged first."""
    return [
        Damage(
            concept=each.concept,
            role=each.role,
            lost=f"{each.lost} of {each.pairs}",
            change=points(each.change),
            instead=", ".join(f"{label} ({number})" for label, number in each.instead[:_LABELS_NAMED]),
            because=f"{each.target} ({percent(each.likeness)})" if each.target else "no single target",
        )
        for each in find_interference(judgement.measures)
    ]


def fits(judgement: Judgement) -> list[Fit]:
    """Returns how well pictures fit their prompts, for the roles that an image-text model looked at."""
    gates = {gate.role: gate for gate in judgement.gates if gate.gate == "quality"}
    confidence = float(judgement.protocol.policy["confidence"])
    rows = []
    for role, title in ROLE_TITLES.items():
        own = judgement.measures[judgement.measures["role"] == role]
        bounds = bound_scores(score_differences(own), confidence=confidence)
        if bounds.clusters < 2:
            continue
        means = own.groupby("model")["image_text_score"].mean()
        rows.append(
            Fit(
                title=title,
                before=score(means["base"]),
                after=score(means["candidate"]),
                change=cosine_change(bounds.mean),
                between=f"{cosine_change_down(bounds.lower)} to {cosine_change_up(bounds.upper)}",
                gate=gates.get(role),
            )
        )
    return rows


def moves(judgement: Judgement) -> list[Move]:
    """Returns how far each role's pictures moved as a whole."""
    titles = ROLE_TITLES | {"target": "Targets, for comparison"}
    return [
        Move(
            title=titles[each.role],
            cmmd=score(each.cmmd) + ("" if each.standard_error is None else f" ± {score(each.standard_error)}"),
            other_seeds="–" if each.other_seeds is None else f"up to {score(each.other_seeds)}",
            reading=_reading(each),
        )
        for each in judgement.discrepancies
    ]


def drift_sentence(drift: Drift) -> str:
    """Returns how much of the weights changed, and whether anything outside the layers that read the prompt did."""
    if not drift.changed and not drift.unmatched:
        return f"None of {count(drift.tensors, 'tensor')} changed: the candidate is the base"
    outside = f"{len(drift.outside) or 'none'} of them outside the layers that read the prompt"
    text = f"{drift.changed} of {count(drift.tensors, 'tensor')} changed, {outside}"
    if drift.unmatched:
        text += f"; {count(len(drift.unmatched), 'tensor')} in one model only, or in another shape"
    return text


def largest_drifts(drift: Drift) -> list[tuple[str, str]]:
    """Returns the tensors that changed most, with their change as a share of their norm."""
    return [(each.name, percent(each.relative)) for each in drift.largest[:_LARGEST_SHOWN]]


def sentences(judgement: Judgement) -> list[str]:
    """Returns the most damaged concepts, how far pictures moved and how far weights did, a sentence each."""
    said = [
        f"{each.concept} ({each.role}): lost {each.lost}, seen as {each.instead}, most likely hurt by {each.because}"
        for each in damages(judgement)[:_DAMAGES_SAID]
    ]
    said += [f"{each.title}: CMMD {each.cmmd}, other seeds {each.other_seeds}" for each in moves(judgement)]
    if judgement.drift is not None:
        said.append(f"weights: {drift_sentence(judgement.drift)}")
    return said


def _reading(each: Discrepancy) -> str:
    if each.other_seeds is None:
        return "too few pictures of each concept to compare with other seeds"
    beyond = each.cmmd - each.other_seeds
    if abs(beyond) <= (each.standard_error or 0.0):
        return "about as much as other seeds do"
    return "more than other seeds do" if beyond > 0 else "less than other seeds do"
