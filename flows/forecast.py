"""How long the next run will take, from what earlier runs took or from a few pictures drawn now; it says which."""

import json
from dataclasses import dataclass
from pathlib import Path

from flows.budget import fit, pictures_of_others
from flows.candidate import Base
from flows.judgement import assign_roles, load_detectors
from flows.pace import pictures_within
from flows.plan import Plan
from flows.requests import TakedownRequest
from flows.services import Services
from validation.policy import Policy

_CALIBRATION_MINUTES = 60.0


@dataclass(frozen=True)
class Forecast:
    """What a run will take at most."""

    pictures: int
    """At most, of both models; targets that are decided early take fewer, kept pictures none."""
    seconds_per_picture: float
    measured_by: str

    @property
    def drawing_seconds(self) -> float:
        """Time for all pictures."""
        return self.pictures * self.seconds_per_picture


def forecast(
    services: Services,
    plan: Plan,
    base: Base,
    *,
    requests: dict[str, TakedownRequest],
    found: tuple[str, ...],
    policy: Policy,
) -> Forecast:
    """Returns the most pictures that a run may draw, and how long they take here.

    Args:
        services: The adapters.
        plan: The run.
        base: Its base on this machine.
        requests: The requests of the plan.
        found: Names that the engine would retain by itself.
        policy: What is asked for.
    """
    detectors = load_detectors(services.settings.detectors, services.settings.resolve_device())
    roles = assign_roles(plan, detectors, found)
    others = pictures_of_others(policy, retained=len(roles.retained), hidden=len(roles.hidden))
    pictures = fit(requests, policy=policy, others=others, limit=None).at_most
    earlier = [pace for folder in services.evidence.glob("*") if (pace := _pace(folder)) is not None]
    if earlier:  # a run that found pictures made before looks faster than it was: the slowest is the honest one
        return Forecast(pictures, max(earlier), f"the slowest of {len(earlier)} earlier judgements on this machine")
    drawn = pictures_within(services, base.folder, minutes=_CALIBRATION_MINUTES)
    return Forecast(pictures, _CALIBRATION_MINUTES * 60 / max(drawn, 1), "a batch of pictures drawn just now")


def _pace(folder: Path) -> float | None:
    if not (folder / "verdict.json").is_file():
        return None
    seconds = json.loads((folder / "verdict.json").read_bytes())["seconds"]
    drawing = sum(spent for phase, spent in seconds.items() if phase.startswith("rendering"))
    rows = (folder / "measures.csv").read_bytes().count(b"\n") - 1
    return drawing / rows if rows > 0 and drawing > 0 else None
