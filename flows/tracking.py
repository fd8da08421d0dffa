"""What MLflow shows of a judgement: parameters, figures per concept, pictures and the report.

Guarantees:
    1. No concept appears in a run's name, tag, parameter or metric; tables and figures inside the run name them.
    2. One run for each judgement; a run that was killed is closed and told apart by its status.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
from PIL import Image

from flows.candidate import Candidate
from flows.plan import Plan
from infra.registry import Registry
from validation import Judgement

EXPERIMENT = "scapre"
_PAIRS_SHOWN = 6
_ENLARGE = 3


def track_judgement(registry: Registry, plan: Plan, candidate: Candidate, judgement: Judgement, evidence: Path) -> str:
    """Logs the judgement of a takedown as one run; returns the run's identifier."""
    return log_judgement(
        registry,
        judgement,
        evidence,
        name=f"takedown {plan.key[:12]}",
        tags={
            "scapre.kind": "takedown",
            "scapre.key": plan.key,
            "scapre.base_digest": plan.base_digest,
            "scapre.candidate_digest": candidate.digest,
            "scapre.requests": ",".join(plan.request_ids),
        },
        params={
            "method": plan.method,
            "base": plan.base,
            "retained_named": len(plan.retain),
            "requests": len(plan.request_ids),
            "edit_digest": candidate.edit_digest,
            **{f"dial.{name}": value for name, value in candidate.edit_facts["dials"].items()},
        },
    )


def log_judgement(
    registry: Registry,
    judgement: Judgement,
    evidence: Path,
    *,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
) -> str:
    """Logs one judgement as one run; returns the run's identifier.

    Args:
        registry: Where to.
        judgement: What was decided.
        evidence: Its bundle.
        name: Name of the run: a purpose and a digest.
        tags: Lineage: digests and opaque identifiers.
        params: What was asked for, beside the policy.
    """
    targets = len(judgement.protocol.targets)
    note = (
        f"**{judgement.verdict}**: {_count_passed(judgement)} of {targets} targets passed. The report is in the "
        "artifacts, `evidence/report.html`."
    )
    with registry.start_run(
        EXPERIMENT, name=name, tags={**tags, "scapre.verdict": judgement.verdict, "mlflow.note.content": note}
    ) as run:
        policy = {f"policy.{key}": value for key, value in judgement.protocol.policy.items()}
        run.log_params({**params, "targets": targets, **policy})
        run.log_metrics(headline(judgement))
        run.log_table(_concepts_table(judgement), "concepts.json")
        run.log_figure(interval_figure(judgement), "intervals.png")
        run.log_table(_gates_table(judgement), "gates.json")
        if targets := shown_targets(judgement):
            with tempfile.TemporaryDirectory() as folder:
                sheet = Path(folder) / "before_and_after.png"
                before_and_after(judgement, targets).save(sheet)
                run.log_artifact(sheet)
        run.log_artifact(evidence, "evidence")
        return run.run_id


def headline(judgement: Judgement) -> dict[str, float]:
    """Returns the figures that stand for the whole judgement, without naming a concept."""
    summary = judgement.summary
    targets = summary[summary.role == "target"]
    figures = {
        "residual_rate_mean": float(targets.rate_candidate.mean()),
        "residual_rate_worst": float(targets.rate_candidate.max()),
        "residual_upper_bound_worst": float(targets.upper.max()),
        "targets_passed": float(_count_passed(judgement)),
    }
    for role in ("retained", "hidden", "style"):
        rows = summary[(summary.role == role) & (summary.pairs > 0)]
        if len(rows):
            figures[f"{role}_accuracy_base"] = float(np.average(rows.rate_base, weights=rows.pictures_base))
            figures[f"{role}_accuracy_candidate"] = float(
                np.average(rows.rate_candidate, weights=rows.pictures_candidate)
            )
            figures[f"{role}_change"] = float(np.average(rows.paired_difference, weights=rows.pairs))
    return figures | {f"seconds.{phase.replace(' ', '_')}": value for phase, value in judgement.seconds.items()}


def interval_figure(judgement: Judgement) -> matplotlib.figure.Figure:
    """Returns each target's residual rate with its upper bound against the limit."""
    gates = [g for g in judgement.gates if g.gate == "forgetting" and g.concept and g.upper is not None]
    figure = matplotlib.figure.Figure(figsize=(8, 1 + 0.32 * max(len(gates), 1)), layout="constrained")
    axes = figure.add_subplot()
    for row, gate in enumerate(gates):
        colour = {"passed": "#1a7f4b", "failed": "#b3261e"}.get(gate.verdict, "#8a6100")
        axes.plot([gate.lower or 0, gate.upper], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(gate.estimate or 0.0, row, "o", color=colour)
    axes.set_yticks(range(len(gates)), [str(g.concept) for g in gates])
    axes.invert_yaxis()
    if gates and gates[0].limit is not None:
        axes.axvline(gates[0].limit, color="black", linestyle="--", linewidth=1, label="limit")
        axes.legend(loc="lower right")
    axes.set_xlabel("residual rate, with one-sided bounds")
    axes.set_xlim(left=0)
    return figure


def shown_targets(judgement: Judgement) -> tuple[str, ...]:
    """Returns the targets whose pictures may be kept beside the evidence: objects and styles, not persons or worse."""
    kinds = dict(zip(judgement.measures.concept, judgement.measures.kind, strict=True))
    return tuple(name for name in judgement.protocol.targets if kinds.get(name) in ("object", "style"))


def before_and_after(judgement: Judgement, targets: Sequence[str], *, side: int = 256) -> Image.Image:
    """Returns each target's pictures on the same seeds: the base above, the candidate below.

    Args:
        judgement: Where the pictures are.
        targets: Which to show.
        side: The most pixels of a picture's side; small pictures are enlarged, though not as far.
    """
    measures = judgement.measures
    rows = []
    for concept in targets:
        of_concept = measures[(measures.concept == concept) & (measures.role == "target")]
        shared = _first_pairs(of_concept)
        rows += [[_picture(judgement, address) for address in shared[model]] for model in ("base", "candidate")]
    own = max((picture.width for row in rows for picture in row), default=1)
    side = min(side, own * _ENLARGE)
    way = Image.Resampling.NEAREST if side > own else Image.Resampling.LANCZOS
    columns = max((len(row) for row in rows), default=1)
    sheet = Image.new("RGB", (side * max(columns, 1), side * max(len(rows), 1)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture.resize((side, side), way), (x * side, y * side))
    return sheet


def _count_passed(judgement: Judgement) -> int:
    return sum(g.verdict == "passed" for g in judgement.gates if g.gate == "forgetting" and g.concept)


def _first_pairs(of_concept: pd.DataFrame) -> dict[str, list[str]]:
    wide = of_concept.pivot_table(index=["prompt", "seed"], columns="model", values="address", aggfunc="first").dropna()
    wide = wide.sort_index(level="seed").head(_PAIRS_SHOWN)
    return {model: wide[model].tolist() for model in ("base", "candidate")}


def _picture(judgement: Judgement, address: str) -> Image.Image:
    with Image.open(judgement.picture_path(address)) as picture:
        return picture.convert("RGB")


def _concepts_table(judgement: Judgement) -> pd.DataFrame:
    """One row for each concept, what is read first first: a browser shows the first few columns."""
    first = ["concept", "role", "rate_base", "rate_candidate", "upper", "paired_difference"]
    summary = judgement.summary
    return summary[[*first, *(name for name in summary.columns if name not in first)]]


def _gates_table(judgement: Judgement) -> pd.DataFrame:
    columns = ["verdict", "gate", "concept", "upper", "limit", "lower", "estimate", "hits", "pictures", "role", "pack"]
    columns += ["attack"]
    rows = [[getattr(gate, name) for name in columns] for gate in judgement.gates]
    return pd.DataFrame(rows, columns=columns)
