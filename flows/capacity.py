"""The capacity curve: how many more concepts a model takes before retention falls below its limit, as a prediction.

Guarantees:
    1. Every point is solved, by the engine itself, with that many more concepts; text only, nothing is drawn or kept.
    2. What a point means for pictures is read off measurements of the same base (isotonic regression over all of them,
       whatever their task), and only between them: beyond the furthest measurement there is no prediction.
    3. A prediction promotes nothing; only a judgement does.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import isotonic_regression

import scapre
from flows.candidate import Base, concepts_of
from flows.plan import Plan
from flows.progress import OnProgress
from flows.services import Services
from scapre.methods import METHODS, find_method
from validation.documents import parse_document, read_document
from validation.errors import PolicyError
from validation.policy import Policy

MEASURED = Path(__file__).parent / "capacity.yaml"
MORE = (0, 2, 5, 10, 20, 50, 100)
"""Numbers of further concepts that are tried."""


class Measured(BaseModel):
    """One measurement: how far responses moved, and what was lost in pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of the base's weights")
    task: str = Field(min_length=1)
    response: float = Field(ge=0, description="retained_response of the edit")
    retained_loss: float | None = Field(default=None, ge=-1, le=1, description="lost share of what was named")
    hidden_loss: float | None = Field(default=None, ge=-1, le=1, description="lost share of what nobody named")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(ge=1, le=1)
    points: tuple[Measured, ...]


@dataclass(frozen=True)
class Point:
    """The plan with so many more concepts."""

    more: int
    response: float
    """How far responses to retained text move, relative to what they are."""
    neighbour_response: float
    """How far the nearest neighbours move, in units of their distance to the target; the mean over targets."""
    retained_loss: float | None
    """Predicted; None beyond what was measured."""
    hidden_loss: float | None
    seconds: float


@dataclass(frozen=True)
class Curve:
    """What can be said of a model's capacity."""

    points: tuple[Point, ...]
    measured: tuple[Measured, ...]
    """What the predictions rest on."""
    fits: int | None
    """The most further concepts for which retention is predicted within its limits; None if not even for the plan's
    own, be it that they are exceeded or that nothing can be predicted."""
    is_predicted: bool
    """Whether anything can be said at all, be it that the plan's own concepts are too many."""
    ended_by: str
    """Why not more, or why nothing can be said."""


def measured_here(services: Services, base_digest: str, method: str = "scapre") -> tuple[Measured, ...]:
    """Returns all measurements of a base: those that ship, and the judgements that this installation keeps.

    Of methods that change the same weights only: what a response costs is another matter elsewhere in the model.
    """
    is_elsewhere = find_method(method).edits_memories
    shipped = parse_document(
        _Table,
        read_document(MEASURED, error=PolicyError),
        source=str(MEASURED),
        what="table of measurements",
        example="points: []",
        error=PolicyError,
    ).points
    folders = [folder for folder in sorted(services.evidence.glob("*")) if (folder / "edit.json").is_file()]
    own = [_judged(folder, memories=is_elsewhere) for folder in folders]
    found = [
        point for point in (*(() if is_elsewhere else shipped), *own) if point is not None and point.base == base_digest
    ]
    return tuple(sorted(found, key=lambda point: point.response))


def capacity_curve(
    plan: Plan,
    base: Base,
    *,
    candidates: Sequence[str],
    measured: Sequence[Measured],
    policy: Policy,
    cache: Path,
    more: Sequence[int] = MORE,
    on_progress: OnProgress | None = None,
    on_read: OnProgress | None = None,
) -> Curve:
    """Solves the plan with more and more further concepts and says how many fit.

    Args:
        plan: The run.
        base: Its base on this machine.
        candidates: Names of plausible further concepts; taken in an order fixed by their digests.
        measured: Of this base.
        policy: The limits.
        cache: The engine's cache of text features.
        more: How many further concepts to try; what exceeds the candidates is left out.
        on_progress: Called with points done and in all.
        on_read: Called with texts read and needed, anew for each point.
    """
    pool = sorted(candidates, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    steps = sorted({number for number in more if number <= len(pool)} | {0})
    points: list[Point] = []
    for number in steps:
        try:
            points.append(_solve(plan, base, pool[:number], measured=measured, cache=cache, on_read=on_read))
        except scapre.ScaPreError as error:
            if not points:
                raise
            return limit_curve(points, measured, policy, ended_by=f"the engine refuses more: {error}")
        if on_progress:
            on_progress(len(points), len(steps))
    return limit_curve(points, measured, policy, ended_by="no more were tried")


def limit_curve(points: Sequence[Point], measured: Sequence[Measured], policy: Policy, *, ended_by: str) -> Curve:
    """Returns the curve up to the first limit; `ended_by` says why there are no more points than these."""
    curve = Curve(tuple(points), tuple(measured), fits=None, is_predicted=True, ended_by=ended_by)
    margins = {"retained": policy.retained_margin, "hidden": policy.hidden_margin}
    for point in points:
        for role, margin in margins.items():
            loss = getattr(point, f"{role}_loss")
            if margin is None or (loss is not None and loss <= margin):
                continue
            if loss is not None:
                why = f"{point.more} more would cost {loss:.1%} of {role} concepts' pictures, limit {margin:.1%}"
            elif any(getattr(one, f"{role}_loss") is not None for one in measured):
                why = f"{point.more} more would move responses further than anything measured on this base"
            else:
                why = f"no judgement of this base says what such edits cost {role} concepts' pictures; run one"
            return replace(curve, is_predicted=loss is not None or curve.fits is not None, ended_by=why)
        curve = replace(curve, fits=point.more)
    return curve


def predict(pairs: Iterable[tuple[float, float | None]], response: float) -> float | None:
    """Returns the loss at a response, between measurements and from no change at all; None beyond the furthest."""
    known = sorted((x, y) for x, y in pairs if y is not None)
    if not known or response > known[-1][0]:
        return None
    xs, ys = zip((0.0, 0.0), *known, strict=True)
    fitted = isotonic_regression(np.array(ys)).x  # a larger change never costs less; other tasks, other losses
    return float(np.interp(response, xs, fitted))


def _solve(
    plan: Plan,
    base: Base,
    further: Sequence[str],
    *,
    measured: Sequence[Measured],
    cache: Path,
    on_read: OnProgress | None,
) -> Point:
    edit = scapre.unlearn(
        base.folder,
        [*concepts_of(plan), *further],
        retain=[name for name in plan.retain if name not in further],
        method=plan.method,
        withheld=plan.withheld,
        cache=cache,
        on_progress=on_read,
        **plan.dials,
    )
    facts = edit.diagnostics
    near = list(facts["neighbour_response"].values())
    response = float(facts["retained_response"])
    return Point(
        more=len(further),
        response=response,
        neighbour_response=sum(near) / len(near),
        retained_loss=predict(((one.response, one.retained_loss) for one in measured), response),
        hidden_loss=predict(((one.response, one.hidden_loss) for one in measured), response),
        seconds=sum(facts["seconds"].values()),
    )


def _judged(folder: Path, *, memories: bool) -> Measured | None:
    """Reads a judgement of this installation; None where no edit is known, or one of other weights."""
    facts = json.loads((folder / "edit.json").read_bytes())
    method = METHODS.get(str(facts.get("method")))
    if (method is not None and method.edits_memories) != memories:
        return None
    gates = json.loads((folder / "verdict.json").read_bytes())["gates"]
    mean = {gate["role"]: gate["estimate"] for gate in gates if gate["gate"] == "retention" and gate["concept"] is None}
    if "retained_response" not in facts.get("diagnostics", {}):
        return None
    losses = {f"{role}_loss": -mean[role] for role in ("retained", "hidden") if mean.get(role) is not None}
    return Measured(
        base=facts["base_digest"],
        task=f"judgement {folder.name}",
        response=facts["diagnostics"]["retained_response"],
        **losses,
    )
