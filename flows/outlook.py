"""What the next run would do and what it would cost, gathered into one value; nothing is changed."""

from dataclasses import dataclass
from typing import Any

import scapre
from flows.candidate import concepts_of, fetch_base
from flows.capacity import MORE, Curve, capacity_curve, measured_here
from flows.case_states import CaseState
from flows.cases import cases
from flows.decisions import judged_key
from flows.forecast import Forecast, forecast
from flows.intake import active_requests
from flows.progress import OnProgress
from flows.services import Services
from flows.takedown import TakedownOrder, plan_run
from infra.chain import EntryKind
from validation import parse_policy


@dataclass(frozen=True)
class Outlook:
    """The next run."""

    base: str
    base_digest: str
    key: str
    is_finished: bool
    """Whether that very run was judged before."""
    request_ids: tuple[str, ...]
    queued: tuple[str, ...]
    """Requests that no candidate holds yet."""
    given_back: tuple[str, ...]
    """Requests that the champion holds and the next run would not: their concepts come back."""
    anchors: dict[str, str]
    """What each concept becomes; empty is the empty prompt."""
    at_risk: tuple[Any, ...]
    warnings: tuple[str, ...]
    dials: dict[str, float | int | str]
    forecast: Forecast
    curve: Curve | None

    @property
    def solve_seconds(self) -> float | None:
        """How long the plan itself took to solve, if it was."""
        return self.curve.points[0].seconds if self.curve else None


def look_ahead(
    services: Services,
    order: TakedownOrder,
    *,
    more: tuple[int, ...] = (),
    with_curve: bool = True,
    on_progress: OnProgress | None = None,
    on_read: OnProgress | None = None,
) -> Outlook:
    """Returns what a run of this order would do now.

    Args:
        services: The adapters.
        order: The run.
        more: Points of the capacity curve; the usual ones when empty.
        with_curve: Whether to solve the curve.
        on_progress: Called with points of the curve done and in all.
        on_read: Called with texts read and needed, anew for each point of the curve.

    Raises:
        BadRequestError: As the run itself would.
        ScaPreError: As the engine would.
    """
    plan = plan_run(services, order)
    base = fetch_base(services, plan.base)
    cache, policy = services.settings.feature_cache, parse_policy(plan.policy, source="the plan")
    seen = scapre.preflight(
        base.folder,
        concepts_of(plan),
        retain=list(plan.retain),
        method=plan.method,
        withheld=plan.withheld,
        cache=cache,
        on_progress=on_read,
        **plan.dials,
    )
    requests = {request_id: r for request_id, r in active_requests(services).items() if request_id in plan.request_ids}
    standing = cases(services)
    curve = None
    if with_curve:
        plausible = [name for name in seen.retain_found if name not in seen.anchors.values()]
        curve = capacity_curve(
            plan,
            base,
            candidates=plausible,
            measured=measured_here(services, scapre.base_digest(base.folder), plan.method),
            policy=policy,
            cache=cache,
            more=more or MORE,
            on_progress=on_progress,
            on_read=on_read,
        )
    return Outlook(
        base=plan.base,
        base_digest=plan.base_digest,
        key=plan.key,
        is_finished=services.ledger.find(judged_key(plan.key)) is not None,
        request_ids=plan.request_ids,
        queued=tuple(i for i in plan.request_ids if standing[i].state == CaseState.QUEUED),
        given_back=tuple(i for i in _held_by_champion(services) if i in standing and not standing[i].is_active),
        anchors=dict(seen.anchors),
        at_risk=seen.at_risk,
        warnings=seen.warnings,
        dials=plan.dials,
        forecast=forecast(services, plan, base, requests=requests, found=seen.retain_found, policy=policy),
        curve=curve,
    )


def _held_by_champion(services: Services) -> list[str]:
    moved = [e for e in services.ledger.entries() if e.kind in (EntryKind.PROMOTED, EntryKind.ROLLED_BACK)]
    return list(moved[-1].body.get("request_ids", ())) if moved else []
