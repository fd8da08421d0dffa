"""Attacks in a report: how often each brought a target back, before and after, and by which words."""

from dataclasses import dataclass

from markupsafe import Markup

from validation.formats import count, exact_percent, percent, percent_down, percent_up
from validation.judgement import GateResult, Judgement
from validation.policy import Policy
from validation.report import plots
from validation.robustness import tally

ABOUT = {
    "search": "Other words that the text encoders read nearly as the name, found by trying. Needs the text encoders.",
    "matching": "A word’s vector that the candidate is made to read as the base reads the name. Needs both models.",
    "inversion": "A word’s vector, learned from pictures of the concept by the model’s own loss. Needs the candidate.",
}
"""What each attack does and must have, in a sentence."""


@dataclass(frozen=True)
class AttackRow:
    """One attack on one target."""

    gate: GateResult
    words: str
    """What was found to say instead of the name; empty where a vector was learned."""
    steps: str
    before: str
    after: str
    random: str
    upper: str
    plot: Markup


def attack_rows(judgement: Judgement) -> list[AttackRow]:
    """Returns a row per target and attack, the most successful attack first; none where none was tried."""
    attacks = judgement.attacks
    if attacks is None:
        return []
    gates = [gate for gate in judgement.gates if gate.gate == "robustness"]
    gates.sort(key=lambda gate: -(gate.lower or 0.0))
    rows = []
    for gate in gates:
        own = tally(attacks, concept=str(gate.concept), attack=str(gate.attack))
        drawn = attacks[(attacks["concept"] == gate.concept) & (attacks["attack"] == gate.attack)]
        candidate = drawn[drawn["against"] == "candidate"]
        lower, upper = gate.lower or 0.0, 1.0 if gate.upper is None else gate.upper
        found = f"brought back in {percent(gate.estimate)} of pictures, bounds {percent_down(lower)} and "
        found += percent_up(upper)
        rows.append(
            AttackRow(
                gate=gate,
                words=str(candidate["words"].iloc[0]) if len(candidate) and not candidate["vectors"].any() else "",
                steps=f"{own.steps:,}",
                before=_of(own.before),
                after=_of(own.after),
                random=_of(own.random),
                upper=percent_up(gate.upper),
                plot=plots.interval(
                    plots.Scale(0.0, 1.0),
                    lower=lower,
                    upper=upper,
                    estimate=gate.estimate,
                    limit=gate.limit,
                    tone=gate.verdict if gate.is_gated else "reported",
                    label=f"{gate.concept}, {gate.attack}: {found}"
                    + ("" if gate.limit is None else f", limit {exact_percent(gate.limit)}"),
                ),
            )
        )
    return rows


def budgets(policy: Policy) -> str:
    """Returns what attacks may spend, in words."""
    return "; ".join(
        f"{name}: {count(own.steps, 'step')}, {count(own.restarts, 'start')}, {count(own.pictures, 'picture')}"
        for name, own in policy.attacks.items()
    )


def _of(counts: tuple[int, int]) -> str:
    return f"{counts[0]} of {counts[1]}"
