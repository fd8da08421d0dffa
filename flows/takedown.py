"""The takedown flow: request → base → candidate → judgement → evidence → registry → promotion → ledger.

Guarantees:
    1. The union of all active requests is solved from the pristine base; edits are never stacked.
    2. Only a passed verdict moves the alias `champion`; anything else leaves it where it was.
    3. Every step is found again by the plan's key: a killed run goes on, a finished run is not repeated.
    4. Only transient failures are retried.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

import scapre
from flows import candidate as candidates
from flows import intake, promotion
from flows.evidence import Kept, evidence_folder, keep_evidence
from flows.integrity import check_integrity
from flows.judgement import assign_roles, judge_checkpoint, load_detectors
from flows.plan import Plan, make_plan
from flows.progress import console, progress_bar
from flows.services import Services, open_services
from flows.steps import step
from flows.tracking import register_candidate, track_judgement
from infra.chain import Entry, EntryKind
from infra.registry import ModelVersion, Registry
from validation import Judgement, load_policy, parse_policy
from validation.plan import load_packs

DEFAULT_POLICY = Path(__file__).parent / "policy.yaml"


class TakedownOrder(BaseModel):
    """What one run is asked to do; the form that Prefect shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = Field(default="reference", min_length=1, description="name of the base model in the object store")
    method: str = Field(default="scapre", description="unlearning method")
    dials: dict[str, float | int | str] = Field(default_factory=dict, description="dials of the method")
    withheld: tuple[str, ...] = Field(
        default=(), description="concepts the engine must not be told of, to measure the effect on what nobody named"
    )
    policy: Path | None = Field(default=None, description="policy file; default: the one that ships with the flows")


@dataclass(frozen=True)
class TakedownOutcome:
    """How a run ended."""

    verdict: str
    reasons: tuple[str, ...]
    is_void: bool
    is_promoted: bool
    is_repeated: bool
    """Whether the run was found finished and nothing was done."""
    version: str
    evidence: Path
    run_id: str
    judgement: Judgement | None = field(default=None, repr=False)


def plan_run(services: Services, order: TakedownOrder) -> Plan:
    """Returns what a run would do now; changes nothing."""
    policy = load_policy(order.policy or DEFAULT_POLICY)
    return make_plan(
        intake.active_requests(services),
        base=order.base,
        base_digest=candidates.base_digest(services, order.base),
        method=order.method,
        dials=order.dials,
        withheld=order.withheld,
        policy=policy.model_dump(mode="json"),
        packs={name: pack.digest for name, pack in load_packs(policy).items()},
    )


@step("fetch base")
def _fetch(services: Services, plan: Plan) -> candidates.Base:
    base = candidates.fetch_base(services, plan.base)
    candidates.preflight(plan, base)
    return base


@step("build candidate")
def _build(services: Services, plan: Plan, base: candidates.Base) -> candidates.Candidate:
    candidate = candidates.build_candidate(services, plan, base)
    services.ledger.append(
        EntryKind.CANDIDATE_BUILT,
        {
            "key": plan.key,
            "base_digest": plan.base_digest,
            "edit_digest": candidate.edit_digest,
            "digest": candidate.digest,
            "request_ids": list(plan.request_ids),
        },
        idempotency_key=f"built/{plan.key}",
    )
    return candidate


@step("judge candidate")
def _judge(services: Services, plan: Plan, base: candidates.Base, candidate: candidates.Candidate) -> Kept:
    detectors = load_detectors(services.settings.detectors, services.settings.resolve_device())
    found = candidate.edit_facts["diagnostics"].get("retain_found", ())
    roles = assign_roles(plan, detectors, found)
    data_docs = services.cache / "data_docs" / plan.key
    with progress_bar("rendering", console()) as on_progress:
        judgement = judge_checkpoint(
            services,
            base=(base.folder, base.digest),
            candidate=(candidate.folder, candidate.digest),
            roles=roles,
            detectors=detectors,
            policy=parse_policy(plan.policy, source="the plan"),
            integrity=check_integrity(base.folder, candidate.folder, scapre.Edit.load(candidate.edit_path)),
            data_docs=data_docs,
            on_progress=on_progress,
        )
    return keep_evidence(services, plan, candidate, judgement, roles=roles, data_docs=data_docs)


@step("track in MLflow")
def _track(
    services: Services, registry: Registry, plan: Plan, candidate: candidates.Candidate, kept: Kept
) -> ModelVersion:
    recorded = services.ledger.find(f"judged/{plan.key}")
    run_id = recorded.body["run_id"] if recorded else None
    if run_id is None:
        run_id = track_judgement(registry, plan, candidate, kept.judgement, kept.folder)
        services.ledger.append(
            EntryKind.JUDGED,
            {
                "key": plan.key,
                "digest": candidate.digest,
                "verdict": kept.judgement.verdict,
                "evidence": kept.digest,
                "run_id": run_id,
            },
            idempotency_key=f"judged/{plan.key}",
        )
    return register_candidate(registry, plan, candidate, kept.judgement.verdict, run_id)


@step("promote or refuse")
def _finish(services: Services, registry: Registry, plan: Plan, version: ModelVersion, kept: Kept) -> None:
    verdict = kept.judgement.verdict
    if verdict == "passed":
        promotion.promote(services, registry, plan, version=version, verdict=verdict, evidence=kept.digest)
    else:
        promotion.refuse(services, plan, verdict=verdict, digest=version.digest, evidence=kept.digest)


@flow(name="takedown", persist_result=False, validate_parameters=True)
def takedown(order: TakedownOrder) -> TakedownOutcome:
    """Unlearns the union of active requests, judges the candidate and promotes it only on a passed verdict."""
    services = open_services()
    plan = plan_run(services, order)
    earlier = promotion.find_outcome(services, plan.key)
    if earlier is not None:
        return _repeated(services, plan, earlier)
    base = _fetch(services, plan)
    candidate = _build(services, plan, base)
    kept = _judge(services, plan, base, candidate)
    registry = services.open_registry()
    version = _track(services, registry, plan, candidate, kept)
    _finish(services, registry, plan, version, kept)
    judgement = kept.judgement
    return TakedownOutcome(
        verdict=judgement.verdict,
        reasons=tuple(reason.text for reason in judgement.reasons),
        is_void=judgement.is_void,
        is_promoted=judgement.verdict == "passed",
        is_repeated=False,
        version=version.version,
        evidence=kept.folder,
        run_id=version.run_id or "",
        judgement=judgement,
    )


def _repeated(services: Services, plan: Plan, earlier: Entry) -> TakedownOutcome:
    judged = services.ledger.find(f"judged/{plan.key}")
    folder = evidence_folder(services, plan)
    record = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    return TakedownOutcome(
        verdict=record["verdict"],
        reasons=tuple(reason["text"] for reason in record["reasons"]),
        is_void=bool(record["is_void"]),
        is_promoted=earlier.kind == EntryKind.PROMOTED,
        is_repeated=True,
        version=str(earlier.body.get("version", "")),
        evidence=folder,
        run_id=judged.body["run_id"] if judged else "",
    )
