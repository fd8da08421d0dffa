"""What one compliance run asks, as a value, known before anything is drawn.

Guarantees:
    1. Only requests that are active and in the champion are asked about; those that wait for a takedown run are named.
    2. Under a budget, requests that were not asked about for longest come first.
    3. The key covers the model, the day, the requests, the policy, the packs and the detectors: the same key is the
       same question.
"""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import rfc8785
from pydantic import BaseModel, ConfigDict, Field

from flows import candidate as candidates
from flows import intake
from flows.budget import Fitted, fit, pictures_of_others
from flows.champions import Champion, Promised, find_champion, read_promised
from flows.judgement import Roles, load_detectors, roles_of
from flows.pace import pictures_within
from flows.plan import union
from flows.requests import TakedownRequest
from flows.services import Services
from flows.takedown import DEFAULT_POLICY
from infra.chain import EntryKind
from validation import Detectors, Subject, load_policy
from validation.plan import load_packs

PREFIX = "reverified"
NOTHING_TO_ASK = "the champion was made for no request that is active: there is nothing to ask"


class ComplianceOrder(BaseModel):
    """What one compliance run is asked to do; the form that Prefect shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = Field(default="reference", min_length=1, description="name of the base model in the object store")
    policy: Path | None = Field(default=None, description="policy file; default: the one that ships with the flows")
    max_pictures: int | None = Field(default=None, ge=1, description="pictures to ask for at most; empty: no limit")
    max_minutes: float | None = Field(
        default=None, gt=0, description="about how long to draw at most, at this machine's pace; empty: no limit"
    )


@dataclass(frozen=True)
class Check:
    """One re-judgement, fixed before anything is drawn."""

    champion: Champion
    promised: Promised
    requests: dict[str, TakedownRequest]
    """Active, and in the champion."""
    pending: tuple[str, ...]
    fitted: Fitted
    roles: Roles
    detectors: Detectors
    key: str


def preview(services: Services, order: ComplianceOrder) -> list[str]:
    """Returns what a run would ask, in words; reads the champion, and changes and draws nothing but for the pace."""
    champion = find_champion(services, services.open_registry())
    with tempfile.TemporaryDirectory() as folder:
        promised = read_promised(services, champion, Path(folder) / "promotion")
        base = candidates.fetch_base(services, order.base, digest=champion.base_digest)
        check = plan_check(services, order, champion, promised, base=base.folder)
    if not check.requests:
        return [NOTHING_TO_ASK]
    judged = sorted(check.fitted.requests)
    return [
        f"champion    version {champion.recorded.version}, digest {champion.recorded.digest}",
        f"judge       {', '.join(judged)}",
        f"pending     {', '.join(check.pending) or 'none'}",
        f"left out    {', '.join(check.fitted.left_out) or 'none'}",
        f"pictures    at most {check.fitted.at_most}, those included that are there already",
        f"key         {check.key}",
    ]


def plan_check(
    services: Services, order: ComplianceOrder, champion: Champion, promised: Promised, *, base: Path
) -> Check:
    """Returns what a run would ask now; changes nothing.

    Raises:
        BadRequestError: The budget holds not one request, or requests contradict each other.
    """
    policy = load_policy(order.policy or DEFAULT_POLICY)
    active = active_requests(services, order.base)
    covered = {
        request_id: request for request_id, request in active.items() if request_id in champion.recorded.request_ids
    }
    requests = _longest_unseen_first(services, covered, champion)
    detectors = load_detectors(services.settings.detectors, services.settings.resolve_device())
    everything = _roles(requests, promised, detectors)
    others = pictures_of_others(policy, retained=len(everything.retained), hidden=len(everything.hidden))
    limit = order.max_pictures
    if order.max_minutes is not None:
        in_time = pictures_within(services, base, minutes=order.max_minutes)
        limit = in_time if limit is None else min(limit, in_time)
    fitted = fit(requests, policy=policy, others=others, limit=limit)
    question = {
        "digest": champion.recorded.digest,
        "day": datetime.now(UTC).date().isoformat(),
        "requests": sorted(fitted.requests),
        "policy": fitted.policy.model_dump(mode="json"),
        "packs": {name: pack.digest for name, pack in load_packs(policy).items()},
        "detectors": dict(detectors.digests()),
    }
    return Check(
        champion=champion,
        promised=promised,
        requests=requests,
        pending=tuple(sorted(active.keys() - covered.keys())),
        fitted=fitted,
        roles=_roles(fitted.requests, promised, detectors),
        detectors=detectors,
        key=f"{PREFIX}/{hashlib.sha256(rfc8785.dumps(question)).hexdigest()}",
    )


def active_requests(services: Services, base: str) -> dict[str, TakedownRequest]:
    """Returns the requests in force for a base, by identifier."""
    return {key: request for key, request in intake.active_requests(services).items() if request.base == base}


def _longest_unseen_first(
    services: Services, requests: Mapping[str, TakedownRequest], champion: Champion
) -> dict[str, TakedownRequest]:
    seen: dict[str, int] = {}
    for entry in services.ledger.entries(kind=EntryKind.REVERIFIED):
        if entry.body["digest"] == champion.recorded.digest:
            seen |= dict.fromkeys(entry.body["request_ids"], entry.sequence)
    return dict(sorted(requests.items(), key=lambda item: (seen.get(item[0], 0), item[0])))


def _roles(requests: Mapping[str, TakedownRequest], promised: Promised, detectors: Detectors) -> Roles:
    targets = [Subject(s.concept, kind=s.kind, aliases=tuple(s.aliases)) for s in union(requests)]
    return roles_of(targets, retained=promised.retained, detectors=detectors)
