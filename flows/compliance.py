"""The compliance flow: is the model in production still free of everything that was ever taken down?

Guarantees:
    1. The champion is read from the object store by its digest; altered bytes are an incident and are not judged.
    2. Every active request that the champion was made for is asked about with today's policy, packs and detectors; what
       a budget leaves out, and what waits for a takedown run, is said by request.
    3. The same champion, question and day is judged once; a killed run goes on from the finished pictures.
    4. A regression against the promotion's own bounds opens an incident; the champion is left where it is.
"""

import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from pydantic import BaseModel, ConfigDict

from flows import candidate as candidates
from flows import incidents
from flows.champions import (
    AlteredChampionError,
    Champion,
    Promised,
    fetch_champion,
    find_champion,
    read_promised,
)
from flows.compliance_plan import NOTHING_TO_ASK, PREFIX, Check, ComplianceOrder, active_requests, plan_check
from flows.evidence import Kept, keep_bundle
from flows.judgement import describe_roles, judge_checkpoint
from flows.progress import both
from flows.regressions import Regression, find_regressions, list_not_passed, subject_names
from flows.run_page import note, show_judgement, shown_progress
from flows.services import Services, open_services
from flows.steps import remembered_step, step
from flows.tracking import EXPERIMENT, log_judgement
from flows.turns import turn_to_render
from infra.chain import Entry, EntryKind
from infra.registry import Registry
from validation import Integrity
from validation.judgement import Verdict

UNALTERED = Integrity(True, "every file of the champion is, byte for byte, what was promoted")


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


@flow(
    name="compliance",
    flow_run_name="compliance of {order.base}",
    validate_parameters=True,
    persist_result=True,
    result_serializer="json",
)
def compliance(order: ComplianceOrder) -> ComplianceOutcome:
    """Judges the champion anew against every active request and opens an incident on a regression."""
    services = open_services()
    services.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="compliance-", dir=services.cache) as folder:
        return _reverify(services, services.open_registry(), order, Path(folder))


def _reverify(services: Services, registry: Registry, order: ComplianceOrder, work: Path) -> ComplianceOutcome:
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
    is_repeated = recorded is not None
    if recorded is None:
        kept = _judge(services, check, base, work / "champion")
        recorded = _record(services, registry, check, kept)
    outcome = _outcome(services, recorded, is_repeated=is_repeated)
    if not outcome.regressions:
        return outcome
    incident = _open_incident(services, registry, recorded)
    note(f"incident {incident.incident_id}")
    return outcome.model_copy(update={"incident": incident.incident_id})


@step("fetch and audit champion")
def _fetch(services: Services, champion: Champion, folder: Path) -> Path:
    return fetch_champion(services, champion, folder)


@remembered_step("read what was promised", digest_of=lambda given: given["champion"].recorded.evidence)
def _read_promised(services: Services, champion: Champion, folder: Path) -> Promised:
    return read_promised(services, champion, folder)


@step("judge champion")
def _judge(services: Services, check: Check, base: candidates.Base, folder: Path) -> Kept:
    key = check.key.removeprefix(f"{PREFIX}/")
    with turn_to_render(services, key) as stay, shown_progress("rendering") as on_progress:
        judgement = judge_checkpoint(
            services,
            base=(base.folder, base.digest),
            candidate=(folder, check.champion.recorded.digest),
            roles=check.roles,
            detectors=check.detectors,
            policy=check.fitted.policy,
            integrity=UNALTERED,
            on_progress=both(on_progress, stay),
        )
    request = {"request_ids": sorted(check.fitted.requests), "plan": key, "roles": describe_roles(check.roles)}
    kept = keep_bundle(services, key, judgement, request=request)
    notes = {"pending": ", ".join(check.pending) or "none", "left out": ", ".join(check.fitted.left_out) or "none"}
    show_judgement(kept, purpose="compliance", names=subject_names(check.requests), notes=notes)
    return kept


@step("record")
def _record(services: Services, registry: Registry, check: Check, kept: Kept) -> Entry:
    champion, judgement = check.champion, kept.judgement
    names = subject_names(check.requests)
    found = [] if judgement.is_void else find_regressions(judgement.gates, check.promised.gates, names=names)
    judged = sorted(check.fitted.requests)
    key = check.key.removeprefix(f"{PREFIX}/")
    registry.discard_runs(EXPERIMENT, tag="scapre.key", value=key)  # logged by a process that was killed
    run_id = log_judgement(
        registry,
        judgement,
        kept.folder,
        name=f"compliance {champion.recorded.digest[:12]}",
        tags={
            "scapre.kind": "compliance",
            "scapre.key": key,
            "scapre.candidate_digest": champion.recorded.digest,
            "scapre.base_digest": champion.base_digest,
            "scapre.requests": ",".join(judged),
            "scapre.regressions": str(len(found)),
        },
        params={"version": champion.recorded.version, "requests": len(judged), "at_most": check.fitted.at_most},
    )
    body = {
        "digest": champion.recorded.digest,
        "version": champion.recorded.version,
        "verdict": judgement.verdict,
        "is_void": judgement.is_void,
        "request_ids": judged,
        "pending": list(check.pending),
        "left_out": list(check.fitted.left_out),
        "regressions": [each.describe() for each in found],
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
    gate, role, asked_by, found = (described[name] for name in ("gate", "role", "asked_by", "found"))
    return Regression(gate, role, asked_by, tuple(described["subjects"]), found)


@step("open incident")
def _open_incident(services: Services, registry: Registry, entry: Entry) -> incidents.Incident:
    found = [_regression(each) for each in entry.body["regressions"]]
    concerned = {subject.split("#")[0] for each in found for subject in each.subjects}
    incident = incidents.open_incident(
        services,
        found_at=entry.at,
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
        services,
        found_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        digest=digest,
        findings=["altered"],
        reasons=[said],
        request_ids=list(active_requests(services, base)),
    )
    incidents.announce(incident, registry, version=version.version if version else None)
    return ComplianceOutcome(verdict="inconclusive", reasons=(said,), is_void=True, incident=incident.incident_id)
