"""The compliance flow: is the model in production still free of everything that was ever taken down?

Guarantees:
    1. The champion is read from the object store by its digest; altered bytes are an incident and are not judged.
    2. Every active request that the champion was made for is asked about with today's policy, packs and detectors; what
       a budget leaves out, and what waits for a takedown run, is said by request.
    3. The same champion, question and day is judged once; a killed run goes on from the finished pictures.
    4. A regression against the promotion's own bounds opens an incident; the champion is left where it is.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rfc8785
from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from flows import candidate as candidates
from flows import incidents, intake
from flows.budget import Fitted, fit, pictures_of_others
from flows.champions import (
    AlteredChampionError,
    Champion,
    Promised,
    fetch_champion,
    find_champion,
    read_promised,
)
from flows.evidence import Kept, keep_bundle
from flows.judgement import Roles, describe_roles, judge_checkpoint, load_detectors, roles_of
from flows.pace import pictures_within
from flows.plan import union
from flows.progress import console, progress_bar
from flows.regressions import Regression, find_regressions, list_not_passed, subject_names
from flows.requests import TakedownRequest
from flows.services import Services, open_services
from flows.steps import step
from flows.tracking import log_judgement
from infra.chain import Entry, EntryKind
from infra.registry import Registry
from validation import Detectors, Integrity, Subject, load_policy
from validation.judgement import Verdict
from validation.plan import load_packs

DEFAULT_POLICY = Path(__file__).parent / "policy.yaml"
PREFIX = "reverified"
NOTHING_TO_ASK = "the champion was made for no request that is active: there is nothing to ask"
UNALTERED = Integrity(True, "every file of the champion is, byte for byte, what was promoted")


class ComplianceOrder(BaseModel):
    """What one compliance run is asked to do; the form that Prefect shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = Field(default="reference", min_length=1, description="name of the base model in the object store")
    policy: Path | None = Field(default=None, description="policy file; default: the one that ships with the flows")
    max_pictures: int | None = Field(default=None, ge=1, description="pictures to ask for at most; empty: no limit")
    max_minutes: float | None = Field(
        default=None, gt=0, description="about how long to draw at most, at this machine's pace; empty: no limit"
    )


class ComplianceOutcome(BaseModel):
    """How a run ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: Verdict
    reasons: tuple[str, ...]
    is_void: bool = False
    is_repeated: bool = False
    """Whether the same question was answered today already."""
    judged: tuple[str, ...] = ()
    """Requests asked about."""
    pending: tuple[str, ...] = ()
    """Active requests that the champion was not made for yet: they need a takedown run, not a judgement."""
    left_out: tuple[str, ...] = ()
    """Requests that the budget did not hold."""
    regressions: tuple[str, ...] = ()
    incident: str | None = None
    evidence: str | None = None
    """URI of the bundle."""
    report: Path | None = None
    """The same, on this machine."""


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


@flow(name="compliance", validate_parameters=True, persist_result=True)
def compliance(order: ComplianceOrder) -> ComplianceOutcome:
    """Judges the champion anew against every active request and opens an incident on a regression."""
    services = open_services()
    registry = services.open_registry()
    if not _active(services, order.base):
        return ComplianceOutcome(verdict="passed", reasons=(NOTHING_TO_ASK,))
    work = services.cache / "compliance" / order.base
    try:
        champion = find_champion(services, registry)
        _fetch(services, champion, work / "champion")
        promised = _read_promised(services, champion, work / "promotion")
    except AlteredChampionError as error:
        return _altered(services, registry, order.base, str(error))
    base = candidates.fetch_base(services, order.base, digest=champion.base_digest)
    check = plan_check(services, order, champion, promised, base=base.folder)
    if not check.requests:
        return ComplianceOutcome(verdict="passed", reasons=(NOTHING_TO_ASK,), pending=check.pending)
    recorded = services.ledger.find(check.key)
    if recorded is None:
        kept = _judge(services, check, base, work / "champion")
        recorded = _record(services, registry, check, kept)
        outcome = _outcome(services, recorded, is_repeated=False)
    else:
        outcome = _outcome(services, recorded, is_repeated=True)
    if outcome.regressions:
        incident = _open_incident(services, registry, recorded)
        outcome = outcome.model_copy(update={"incident": incident.incident_id})
    shutil.rmtree(work, ignore_errors=True)
    return outcome


def preview(services: Services, order: ComplianceOrder) -> list[str]:
    """Returns what a run would ask, in words; reads the champion, and changes and draws nothing but for the pace."""
    if not _active(services, order.base):
        return [NOTHING_TO_ASK]
    champion = find_champion(services, services.open_registry())
    with tempfile.TemporaryDirectory() as folder:
        promised = read_promised(services, champion, Path(folder) / "promotion")
        base = candidates.fetch_base(services, order.base, digest=champion.base_digest)
        check = plan_check(services, order, champion, promised, base=base.folder)
    judged = sorted(check.fitted.requests)
    return [
        f"champion    version {champion.version.version}, digest {champion.version.digest}",
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
    active = _active(services, order.base)
    covered = {request_id: request for request_id, request in active.items() if request_id in champion.request_ids}
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
        "digest": champion.version.digest,
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


def _active(services: Services, base: str) -> dict[str, TakedownRequest]:
    return {key: request for key, request in intake.active_requests(services).items() if request.base == base}


def _longest_unseen_first(
    services: Services, requests: Mapping[str, TakedownRequest], champion: Champion
) -> dict[str, TakedownRequest]:
    seen: dict[str, int] = {}
    for entry in services.ledger.entries(kind=EntryKind.REVERIFIED):
        if entry.body["digest"] == champion.version.digest:
            seen |= dict.fromkeys(entry.body["request_ids"], entry.sequence)
    return dict(sorted(requests.items(), key=lambda item: (seen.get(item[0], 0), item[0])))


def _roles(requests: Mapping[str, TakedownRequest], promised: Promised, detectors: Detectors) -> Roles:
    targets = [Subject(s.concept, kind=s.kind, aliases=tuple(s.aliases)) for s in union(requests)]
    return roles_of(targets, retained=promised.retained, detectors=detectors)


@step("fetch and audit champion")
def _fetch(services: Services, champion: Champion, folder: Path) -> Path:
    return fetch_champion(services, champion, folder)


@step("read what was promised")
def _read_promised(services: Services, champion: Champion, folder: Path) -> Promised:
    return read_promised(services, champion, folder)


@step("judge champion")
def _judge(services: Services, check: Check, base: candidates.Base, folder: Path) -> Kept:
    key = check.key.removeprefix(f"{PREFIX}/")
    with progress_bar("rendering", console()) as on_progress:
        judgement = judge_checkpoint(
            services,
            base=(base.folder, base.digest),
            candidate=(folder, check.champion.version.digest),
            roles=check.roles,
            detectors=check.detectors,
            policy=check.fitted.policy,
            integrity=UNALTERED,
            data_docs=None,
            on_progress=on_progress,
        )
    request = {"request_ids": sorted(check.fitted.requests), "plan": key, "roles": describe_roles(check.roles)}
    return keep_bundle(services, key, judgement, request=request)


@step("record")
def _record(services: Services, registry: Registry, check: Check, kept: Kept) -> Entry:
    champion, judgement = check.champion, kept.judgement
    names = subject_names(check.requests)
    found = find_regressions(judgement.gates, check.promised.gates, names=names)
    judged = sorted(check.fitted.requests)
    run_id = log_judgement(
        registry,
        judgement,
        kept.folder,
        name=f"compliance {champion.version.digest[:12]}",
        tags={
            "scapre.kind": "compliance",
            "scapre.candidate_digest": champion.version.digest,
            "scapre.base_digest": champion.base_digest,
            "scapre.requests": ",".join(judged),
            "scapre.regressions": str(len(found)),
        },
        params={"version": champion.version.version, "requests": len(judged), "at_most": check.fitted.at_most},
    )
    body = {
        "digest": champion.version.digest,
        "version": champion.version.version,
        "verdict": judgement.verdict,
        "is_void": judgement.is_void,
        "request_ids": judged,
        "pending": list(check.pending),
        "left_out": list(check.fitted.left_out),
        "regressions": [] if judgement.is_void else [each.describe() for each in found],
        "not_passed": list_not_passed(judgement.gates, names=names),
        "evidence": kept.digest,
        "evidence_uri": kept.uri,
        "run_id": run_id,
    }
    return services.ledger.append(EntryKind.REVERIFIED, body, idempotency_key=check.key)


def _outcome(services: Services, entry: Entry, *, is_repeated: bool) -> ComplianceOutcome:
    body = entry.body
    regressions = tuple(str(_regression(each)) for each in body["regressions"])
    return ComplianceOutcome(
        verdict=body["verdict"],
        reasons=tuple(body["not_passed"]),
        is_void=body["is_void"],
        is_repeated=is_repeated,
        judged=tuple(body["request_ids"]),
        pending=tuple(body["pending"]),
        left_out=tuple(body["left_out"]),
        regressions=regressions,
        evidence=body["evidence_uri"],
        report=services.evidence / (entry.idempotency_key or "").removeprefix(f"{PREFIX}/")[:16] / "report.html",
    )


def _regression(described: Mapping[str, Any]) -> Regression:
    gate, role, pack, found = (described[name] for name in ("gate", "role", "pack", "found"))
    return Regression(gate, role, pack, tuple(described["subjects"]), found)


@step("open incident")
def _open_incident(services: Services, registry: Registry, entry: Entry) -> incidents.Incident:
    found = [_regression(each) for each in entry.body["regressions"]]
    concerned = {subject.split("#")[0] for each in found for subject in each.subjects}
    incident = incidents.open_incident(
        services,
        digest=entry.body["digest"],
        findings=[each.identity for each in found],
        reasons=[str(each) for each in found],
        request_ids=sorted(concerned),
    )
    incidents.announce(incident, registry, version=entry.body["version"])
    return incident


def _altered(services: Services, registry: Registry, base: str, said: str) -> ComplianceOutcome:
    version = registry.champion()
    digest = version.digest if version else "none"
    incident = incidents.open_incident(
        services, digest=digest, findings=["altered"], reasons=[said], request_ids=list(_active(services, base))
    )
    incidents.announce(incident, registry, version=version.version if version else None)
    return ComplianceOutcome(verdict="inconclusive", reasons=(said,), is_void=True, incident=incident.incident_id)
