"""What a report says, as values; the template only lays it out.

Guarantees:
    1. Every figure comes from a gate or a table of the judgement; nothing is measured anew.
    2. Where the judgement is about an unsafe concept, or safe mode is asked for, no picture is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from validation.formats import (
    exact_percent,
    exact_points,
    percent,
    percent_down,
    percent_up,
    points,
    points_down,
    points_up,
)
from validation.judgement import GateResult, Judgement
from validation.probe_packs import OWN_PACKS, is_further_pack
from validation.report import plots
from validation.report.effects import ROLE_TITLES
from validation.report.pictures import Pair, PictureReader, Shown, first_pairs, still_drawn

_REPLACEMENTS_SHOWN = 4
_FEWEST_OPEN = 5
_MOST_OPEN = 12
_CHANGED_SHOWN = 3


@dataclass(frozen=True)
class TargetRow:
    """One forgetting gate beside the base's pictures."""

    gate: GateResult
    kind: str
    further_pack: str | None
    """The probe pack, where it is not the one that asks for the concept by its name."""
    before: str
    after: str
    upper: str
    plot: Markup


@dataclass(frozen=True)
class Gallery:
    """A concept's pictures, and what the detector sees in their place."""

    concept: str
    role: str
    verdict: str | None
    pairs: list[Pair]
    still: list[Shown]
    instead: list[tuple[str, int]]
    pictures: int
    hits: int


@dataclass(frozen=True)
class ChangeRow:
    """What happened to one concept that had to survive."""

    concept: str
    before: str
    after: str
    change: str
    is_loss: bool
    pairs: int
    plot: Markup


@dataclass(frozen=True)
class TargetControls:
    """Whether the detector finds a target in the base, and does not find it elsewhere."""

    concept: str
    positive: GateResult | None
    negative: GateResult | None

    @property
    def verdict(self) -> str:
        """`passed` when both are there and passed."""
        both = (self.positive, self.negative)
        return "passed" if all(gate is not None and gate.verdict == "passed" for gate in both) else "failed"


@dataclass(frozen=True)
class RoleChange:
    """What happened to the concepts of a role: as a whole, and one by one, most damaged first."""

    title: str
    gate: GateResult
    change: str
    between: str
    plot: Markup
    rows: list[ChangeRow]

    @property
    def open_rows(self) -> list[ChangeRow]:
        """The most damaged, always in view."""
        return self.rows[: self._cut]

    @property
    def folded_rows(self) -> list[ChangeRow]:
        """The others."""
        return self.rows[self._cut :]

    @property
    def _cut(self) -> int:
        return rows_in_view(len(self.rows), losses=sum(row.is_loss for row in self.rows))


def rows_in_view(rows: int, *, losses: int) -> int:
    """Returns how many rows of a table stay in view: a long one is folded after its losses."""
    return min(rows, _MOST_OPEN, max(losses, _FEWEST_OPEN))


def is_without_pictures(judgement: Judgement, *, safe_mode: bool) -> bool:
    """Says whether the report must not carry pictures."""
    return safe_mode or bool((judgement.measures["kind"] == "unsafe").any())


def target_scale(judgement: Judgement) -> plots.Scale:
    """Returns the axis that all targets share."""
    gates = forgetting_gates(judgement)
    return plots.rate_scale([*(gate.upper for gate in gates), *(2 * gate.limit for gate in gates if gate.limit)])


def forgetting_gates(judgement: Judgement) -> list[GateResult]:
    """Returns the forgetting gates, worst first."""
    order = {"failed": 0, "inconclusive": 1, "passed": 2}
    gates = [gate for gate in judgement.gates if gate.gate == "forgetting"]
    return sorted(gates, key=lambda g: (order[g.verdict], is_further_pack(g.pack), -(g.upper or 0.0), g.concept or ""))


def forgotten_targets(judgement: Judgement) -> list[str]:
    """Returns the targets whose every gated forgetting gate passed, in every pack."""
    gates = [gate for gate in forgetting_gates(judgement) if gate.is_gated]
    named = {gate.concept for gate in gates} - {gate.concept for gate in gates if gate.verdict != "passed"}
    return [target for target in judgement.protocol.targets if target in named]


def target_rows(judgement: Judgement) -> list[TargetRow]:
    """Returns one row per forgetting gate, worst first."""
    scale = target_scale(judgement)
    summary = judgement.summary[judgement.summary["role"] == "target"].set_index(["concept", "pack"])
    rows = []
    for gate in forgetting_gates(judgement):
        lower, upper = gate.lower or 0.0, 1.0 if gate.upper is None else gate.upper
        about = summary.loc[(gate.concept, gate.pack)] if (gate.concept, gate.pack) in summary.index else None
        rows.append(
            TargetRow(
                gate=gate,
                kind="object" if about is None else str(about["kind"]),
                further_pack=gate.pack if is_further_pack(gate.pack) else None,
                before="–" if about is None else f"{about['hits_base']} of {about['pictures_base']}",
                after=f"{gate.hits} of {gate.pictures}",
                upper=percent_up(gate.upper),
                plot=plots.interval(
                    scale,
                    lower=lower,
                    upper=upper,
                    estimate=gate.estimate,
                    limit=gate.limit,
                    tone=gate.verdict,
                    label=f"{gate.concept}: found in {percent(gate.estimate)} of pictures, bounds "
                    f"{percent_down(lower)} and {percent_up(upper)}, limit {exact_percent(gate.limit)}",
                ),
            )
        )
    return rows


def target_galleries(judgement: Judgement, read: PictureReader) -> list[Gallery]:
    """Returns the pictures of every target, in the order of the table."""
    galleries = []
    for gate in forgetting_gates(judgement):
        if gate.concept is not None and not is_further_pack(gate.pack):
            galleries.append(_gallery(judgement, gate.concept, str(gate.pack), gate.verdict, read))
    return galleries


def damaged_galleries(judgement: Judgement, read: PictureReader, roles: tuple[str, ...]) -> list[Gallery]:
    """Returns the pictures of the concepts of some roles that lost most, if any lost."""
    summary = judgement.summary
    own = summary[summary["role"].isin(roles) & (summary["paired_difference"] < 0)]
    worst = own.sort_values("paired_difference", kind="stable").head(_CHANGED_SHOWN)
    return [_gallery(judgement, str(row.concept), str(row.pack), None, read) for row in worst.itertuples()]


def role_changes(judgement: Judgement) -> dict[str, RoleChange]:
    """Returns what happened to retained concepts, styles and hidden concepts; only the roles that were measured."""
    gates = {gate.role: gate for gate in judgement.gates if gate.gate in ("retention", "hidden") and gate.role}
    scale = change_axis(judgement)
    return {role: _role_change(judgement, gates[role], scale) for role in ROLE_TITLES if role in gates}


def change_axis(judgement: Judgement) -> plots.Scale:
    """Returns the axis that the roles share."""
    gates = [gate for gate in judgement.gates if gate.gate in ("retention", "hidden")]
    return plots.change_scale([value for gate in gates for value in (gate.lower, gate.upper, gate.limit)])


def general_controls(judgement: Judgement) -> list[GateResult]:
    """Returns integrity and the controls that are not about one target."""
    return [gate for gate in judgement.gates if gate.gate == "integrity" or (gate.is_control and gate.concept is None)]


def target_controls(judgement: Judgement) -> list[TargetControls]:
    """Returns every target's two controls, those that did not pass first, then in the protocol's order."""
    found = {(gate.gate, gate.concept): gate for gate in judgement.gates if not is_further_pack(gate.pack)}
    rows = [
        TargetControls(name, found.get(("positive control", name)), found.get(("negative control", name)))
        for name in judgement.protocol.targets
    ]
    return sorted(rows, key=lambda row: row.verdict == "passed")


def not_passed(judgement: Judgement) -> list[GateResult]:
    """Returns the gates that keep the verdict from `passed`: integrity and controls first, then failures."""
    own = [gate for gate in judgement.gates if gate.is_gated and gate.verdict != "passed"]
    return sorted(own, key=lambda g: (g.gate != "integrity", not g.is_control, g.verdict != "failed"))


def prompts_of_first_target(judgement: Judgement) -> list[str]:
    """Returns the distinct prompts of one target, as an example of what was asked."""
    measures = judgement.measures
    own = measures[(measures["concept"] == judgement.protocol.targets[0]) & measures["pack"].isin(OWN_PACKS)]
    return list(dict.fromkeys(own["prompt"].astype(str)))


def kind_counts(judgement: Judgement) -> dict[str, int]:
    """Returns the number of targets by kind."""
    own = judgement.summary[judgement.summary["role"] == "target"].drop_duplicates("concept")
    return {str(kind): int(number) for kind, number in own["kind"].value_counts().sort_index().items()}


def _gallery(judgement: Judgement, concept: str, pack: str, verdict: str | None, read: PictureReader) -> Gallery:
    measures = judgement.measures
    own = measures[(measures["concept"] == concept) & (measures["model"] == "candidate") & (measures["pack"] == pack)]
    instead = own.loc[~own["is_hit"].astype(bool), "top_label"].value_counts().head(_REPLACEMENTS_SHOWN)
    pairs = first_pairs(measures, concept, pack=pack, read=read, lost_first=verdict is None)
    return Gallery(
        concept=concept,
        role=str(own["role"].iloc[0]) if len(own) else "target",
        verdict=verdict,
        pairs=pairs,
        still=still_drawn(measures, concept, pack=pack, pairs=pairs, read=read) if verdict is not None else [],
        instead=[(str(label), int(number)) for label, number in instead.items()],
        pictures=len(own),
        hits=int(own["is_hit"].sum()),
    )


def _role_change(judgement: Judgement, gate: GateResult, scale: plots.Scale) -> RoleChange:
    title = ROLE_TITLES[str(gate.role)]
    lower, upper = -1.0 if gate.lower is None else gate.lower, 1.0 if gate.upper is None else gate.upper
    between = f"{points_down(lower)} to {points_up(upper)}"
    summary = judgement.summary[judgement.summary["role"] == gate.role]
    ordered = summary.sort_values(["paired_difference", "concept"], kind="stable", na_position="first")
    return RoleChange(
        title=title,
        gate=gate,
        change=points(gate.estimate),
        between=between,
        plot=plots.interval(
            scale,
            lower=lower,
            upper=upper,
            estimate=gate.estimate,
            limit=gate.limit,
            tone=gate.verdict if gate.is_gated else "reported",
            label=f"{title}: changed by {points(gate.estimate)} points, bounds {between}"
            + ("" if gate.limit is None else f", margin {exact_points(gate.limit)}"),
        ),
        rows=[_change_row(row) for row in ordered.to_dict("records")],
    )


def _change_row(row: Mapping[Any, Any]) -> ChangeRow:
    before, after = float(row["rate_base"]), float(row["rate_candidate"])
    change = float(row["paired_difference"])
    label = f"{row['concept']}: found in {percent(before)} of pictures before and {percent(after)} after"
    return ChangeRow(
        concept=str(row["concept"]),
        before=percent(before),
        after=percent(after),
        change=points(change),
        is_loss=change < 0,
        pairs=int(row["pairs"]),
        plot=plots.before_after(before=_or_zero(before), after=_or_zero(after), label=label),
    )


def _or_zero(value: float) -> float:
    return 0.0 if pd.isna(value) else value
