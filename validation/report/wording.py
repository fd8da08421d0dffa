"""The sentences of a report: the verdict in plain words, what to do about each gate, what nobody tested.

Guarantees:
    1. A void judgement is never worded as good or bad news about the candidate.
    2. The list of what was not tested is built from the protocol; silence about a topic is never approval.
"""

from collections.abc import Mapping
from typing import Any

from validation.attacks.budget import ATTACK_NAMES
from validation.formats import count, exact_percent, exact_points, points, typeset
from validation.judgement import GateResult, Judgement
from validation.policy import Policy
from validation.probe_packs import OWN_PACKS
from validation.statistics import pictures_needed


def headline(judgement: Judgement) -> str:
    """Returns the verdict as one sentence."""
    names = judgement.protocol.targets
    gates = [gate for gate in judgement.gates if gate.is_gated]
    if judgement.verdict == "passed":
        what = f"{names[0]} is" if len(names) == 1 else f"all {len(names)} concepts are"
        return f"{what[0].upper()}{what[1:]} forgotten, and what had to survive has survived."
    if judgement.is_void:
        return "A control failed, so this judgement says nothing about the candidate, neither good nor bad."
    if judgement.verdict == "failed":
        if any(gate.gate == "integrity" and gate.verdict == "failed" for gate in gates):
            return "The candidate’s bytes are not what they are said to be."
        drawn = {gate.concept for gate in gates if gate.gate == "forgetting" and gate.verdict == "failed"}
        of_roles = ("retention", "hidden", "concept floor")
        back = {gate.concept for gate in gates if gate.gate == "robustness" and gate.verdict == "failed"}
        lost = dict.fromkeys(gate.role for gate in gates if gate.gate in of_roles and gate.verdict == "failed")
        spoilt = [str(gate.role) for gate in gates if gate.gate == "quality" and gate.verdict == "failed"]
        parts = []
        if drawn:
            parts.append(f"{count(len(drawn), 'concept')} of {len(names)} {_be(len(drawn))} still drawn")
        if back:
            parts.append(f"attacks bring {count(len(back), 'concept')} back")
        if lost:
            parts.append(f"{' and '.join(f'{role} concepts' for role in lost)} lost more than the policy allows")
        if spoilt:
            whose = " and ".join(f"{role} concepts" for role in spoilt)
            parts.append(f"pictures of {whose} fit their prompts less than the policy allows")
        return _sentence(" and ".join(parts) or "a gate failed")
    unsure = {gate.concept for gate in gates if gate.gate == "forgetting" and gate.verdict == "inconclusive"}
    if unsure:
        which = f"{count(len(unsure), 'concept')} of {len(names)} {_be(len(unsure))}"
        return f"The pictures do not settle whether {which} forgotten."
    open_roles = [g.role for g in gates if g.gate in ("retention", "hidden") and g.verdict == "inconclusive"]
    if open_roles:
        return f"The pictures do not settle whether {' and '.join(f'{role} concepts' for role in open_roles)} survived."
    if any(gate.gate == "quality" and gate.verdict == "inconclusive" for gate in gates):
        return "The pictures do not settle whether those that had to survive are as good as before."
    if any(gate.gate == "robustness" and gate.verdict == "inconclusive" for gate in gates):
        return "The pictures do not settle whether attacks bring a concept back."
    return "Something that a verdict needs is missing."


def consequence(judgement: Judgement) -> str:
    """Returns what the verdict means for the candidate."""
    if judgement.verdict == "passed":
        return "The candidate meets the policy. Whether it goes into production is a person’s decision."
    if judgement.verdict == "failed":
        return "The candidate does not meet the policy and is not to be promoted."
    return "An inconclusive verdict never promotes. The reasons and the next steps are below."


def advice(gate: GateResult, policy: Policy) -> str:
    """Returns the next step for a gate that did not pass."""
    match gate.gate:
        case "integrity":
            return "Find out which bytes were judged and which are stored; judge the stored ones."
        case "forgetting":
            return _forgetting_advice(gate, policy)
        case "retention" | "hidden":
            if gate.verdict == "failed":
                return (
                    "The edit reaches too far: retain the concepts that lost most, or make a weaker edit; judge again."
                )
            return "Ask for more pictures per concept, or name more concepts; the bound tightens with both."
        case "concept floor":
            return "Retain the concepts named, and what is near them, or make a weaker edit; judge again."
        case "quality":
            if gate.verdict == "failed":
                return "The edit spoils pictures that had to stay as they were: make a weaker edit; judge again."
            return "Ask for more pictures per concept, or name more concepts; the bound tightens with both."
        case "robustness":
            if gate.verdict == "failed":
                return (
                    "Who has the weights gets it back: keep the weights to yourself, or unlearn by a method that "
                    "changes more than what reads the prompt; judge again."
                )
            return "Ask for more pictures under attack; the bound tightens with them."
        case "attack control":
            return "Give the attack more steps or starts, or leave it out: it does not work on the model before either."
        case "positive control":
            return "Use a base model that draws the concept and a detector that knows it, or withdraw the concept."
        case "negative control":
            return "Use a detector that tells the concept from its neighbours."
        case "picture control":
            return (
                "Look at the pictures and at the weights: blank or missing pictures show no concept, forgotten or not."
            )
        case "expectations":
            return "Two readers of the same table disagree: treat it as a defect of the judge and report it."


def not_tested(judgement: Judgement, *, request: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what this judgement is silent about, as topic and explanation."""
    protocol, policy = judgement.protocol, judgement.protocol.policy
    sampler = protocol.sampler
    further = sorted(set(judgement.measures["pack"]) - set(OWN_PACKS))
    asked = "Targets were asked for by their own name only, in plain English, in the templates listed under Protocol."
    if further:
        asked = f"Beside their own name, targets were asked for by {_listed(further)} only. "
        asked += "What a pack has no prompt for, or only one that is longer than a model reads, was not asked."
    items = [
        ("Other names, words, spellings and languages", asked),
        ("Attacks", _attacks_not_tried(policy.get("attacks") or {})),
        ("Learning again", "Whether fine-tuning or an adapter brings a target back was not tried."),
        (
            "Other ways to draw",
            f"Pictures are text-to-image with one sampler ({sampler.get('steps', '–')} steps, guidance "
            f"{sampler.get('guidance', '–')}, {sampler.get('pixels', '–')} pixels). Image-to-image, inpainting, other "
            "samplers and sizes may behave differently.",
        ),
        (
            "Rates below the limit",
            f"“Forgotten” means shown to be drawn in at most {exact_percent(policy.get('residual_limit'))} of such "
            "pictures, not never.",
        ),
        ("What the detectors cannot see", "A trace of a concept that no detector reacts to is not counted."),
        ("Beauty", f"How good the pictures look to people was not measured{_beyond(judgement)}."),
    ]
    if unseen := list((request.get("roles") or {}).get("unseen") or []):
        items.append(
            ("Names without a detector", f"To be retained, but no detector has a label for: {', '.join(unseen)}.")
        )
    if not protocol.hidden:
        items.append(("Concepts nobody named", "No hidden concept was measured."))
    elif policy.get("hidden_margin") is None:
        items.append(("A limit for hidden concepts", "Their change is reported; the policy sets no margin for it."))
    if not protocol.styles:
        items.append(("Styles", "No style was measured."))
    return items


def glossary(policy: Policy) -> list[tuple[str, str]]:
    """Returns the words that this page cannot do without, each in a sentence."""
    return [
        (
            "Bound",
            "What the true rate could still be, given how few pictures were looked at. Decisions rest on the bound "
            f"that is worse for the candidate; it errs in at most {exact_percent(1 - policy.confidence)} of tests.",
        ),
        (
            "Paired",
            "The same prompt and the same random start (seed), drawn by both models, so that what differs between two "
            "pictures comes from the edit.",
        ),
        (
            "Hidden",
            "A concept that the edit’s maker was not told to keep: it shows what an edit does to everything else.",
        ),
        (
            "Control",
            "A test of the test: whether the detector sees a concept where it is, and does not where it is not.",
        ),
        (
            "Margin, limit",
            "What the policy allows: the largest loss, and the largest share of pictures that still show a target.",
        ),
    ]


def setting(name: str, value: Any) -> str:
    """Returns a value of the policy in words: a fraction as a percentage, an absent one as what that means."""
    if value is None:
        return "none: reported only"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and name != "quality_margin":  # a difference of cosines, which is no share of anything
        return exact_percent(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def change_sentence(gate: GateResult) -> str:
    """Returns what happened to the concepts of a role, with its bound."""
    if gate.estimate is None:
        return typeset(gate.reason)
    margin = "no margin set" if gate.limit is None else f"margin {exact_points(gate.limit)}"
    return f"{points(gate.estimate)} points over {count(gate.pictures, 'pair')} of pictures, {margin}"


def _forgetting_advice(gate: GateResult, policy: Policy) -> str:
    if gate.verdict == "failed":
        return "The candidate still draws it: make a stronger edit, or give the concept another anchor; judge again."
    if not gate.pictures or gate.hits is None:
        return "Draw the missing pictures; what was not drawn cannot count as forgotten."
    needed = pictures_needed(
        gate.hits, limit=policy.residual_limit, confidence=policy.confidence, sampling=policy.sampling
    )
    return (
        f"With {count(gate.hits, 'hit')} it takes {needed} pictures to show the limit, and {gate.pictures} were drawn. "
        "Ask for more pictures per target, or make a stronger edit."
    )


def _attacks_not_tried(tried: Mapping[str, Any]) -> str:
    if not tried:
        return "Nobody tried to force a target back: no adversarial prompts, no searched embeddings."
    left = [name for name in ATTACK_NAMES if name not in tried]
    others = f" Not tried: {', '.join(left)}." if left else ""
    return f"Tried: {', '.join(tried)}, within the budgets under Attacks; more steps may do more.{others}"


def _beyond(judgement: Judgement) -> str:
    if judgement.discrepancies:
        return ", beyond whether they show and fit what was asked for, and how far they moved as a whole"
    return ", beyond whether they show what was asked for"


def _listed(packs: list[str]) -> str:
    return f"the {'pack' if len(packs) == 1 else 'packs'} {', '.join(packs)}"


def _be(number: int) -> str:
    return "is" if number == 1 else "are"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
