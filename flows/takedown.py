"""The takedown flow: request → base → candidate → judgement → evidence → approval → promotion → ledger.

Guarantees:
    1. The union of all active requests is solved from the pristine base; edits are never stacked.
    2. Only a passed verdict that was approved moves the alias `champion`; anything else leaves it where it was.
    3. Every step is found again by the plan's key: a killed run goes on, a finished run is not repeated, and two
       processes with the same plan make one candidate.
    4. When a newer champion honours requests that came in since, the run goes on from the union of all.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

import scapre
from flows import candidate as candidates
from flows import intake
from flows.approval import Decision, Settled, announce_waiting, settle_candidate
from flows.decisions import judged_key
from flows.evidence import Kept, fetch_evidence, keep_evidence
from flows.integrity import check_integrity
from flows.judgement import assign_roles, judge_checkpoint, load_detectors
from flows.plan import Plan, make_plan
from flows.progress import QUIET_SECONDS, both
from flows.promotion import StaleApprovalError
from flows.regressions import subject_names
from flows.run_page import note, show_judgement, shown_progress
from flows.services import Services, open_services
from flows.steps import step
from flows.tracking import EXPERIMENT, track_judgement
from flows.turns import turn_to_render
from infra.chain import Entry, EntryKind
from infra.locks import keep_lock
from infra.registry import Registry
from validation import Judgement, load_policy, parse_policy
from validation.plan import load_packs

RUN_WAIT_SECONDS = 12 * 3600.0  # another process is at the same run: as long as that may take
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
    decision: Decision
    """promoted, refused, waiting for a person's approval, or declined by one."""
    is_repeated: bool
    """Whether the run was found finished and nothing was done."""
    version: str
    digest: str
    """Of the candidate: what a person approves."""
    evidence: Path
    run_id: str
    judgement: Judgement | None = field(default=None, repr=False)

    @property
    def is_promoted(self) -> bool:
        """Whether the candidate is the champion."""
        return self.decision == "promoted"


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
    note(f"base {plan.base} with digest {base.digest} fetched and verified")
    candidates.preflight(plan, base)
    return base


@step("build candidate")
def _build(services: Services, plan: Plan, base: candidates.Base) -> candidates.Candidate:
    with shown_progress("reading", of="texts", after=QUIET_SECONDS) as on_progress:
        candidate = candidates.build_candidate(services, plan, base, on_progress=on_progress)
    note(f"candidate {candidate.digest} of {', '.join(plan.request_ids) or 'no request'}, by {plan.method}")
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
    with turn_to_render(services, plan.key) as stay, shown_progress("rendering") as on_progress:
        judgement = judge_checkpoint(
            services,
            base=(base.folder, base.digest),
            candidate=(candidate.folder, candidate.digest),
            roles=roles,
            detectors=detectors,
            policy=parse_policy(plan.policy, source="the plan"),
            integrity=check_integrity(base.folder, candidate.folder, scapre.Edit.load(candidate.edit_path)),
            data_docs=data_docs,
            on_progress=both(on_progress, stay),
        )
    kept = keep_evidence(services, plan, candidate, judgement, roles=roles, data_docs=data_docs)
    show_judgement(kept, purpose="takedown", names=subject_names(intake.active_requests(services)))
    return kept


@step("track in MLflow")
def _track(services: Services, registry: Registry, plan: Plan, candidate: candidates.Candidate, kept: Kept) -> Entry:
    # logged before and never recorded: by a process that was killed in between, with evidence that was replaced since
    registry.discard_runs(EXPERIMENT, tag="scapre.key", value=plan.key)
    run_id = track_judgement(registry, plan, candidate, kept.judgement, kept.folder)
    note(f"MLflow run {run_id}")
    return services.ledger.append(
        EntryKind.JUDGED,
        {
            "key": plan.key,
            "digest": candidate.digest,
            "verdict": kept.judgement.verdict,
            "evidence": kept.digest,
            "run_id": run_id,
            "request_ids": list(plan.request_ids),
        },
        idempotency_key=judged_key(plan.key),
    )


@step("approve and promote")
def _settle(services: Services, registry: Registry, judged: Entry) -> Settled:
    settled = settle_candidate(services, registry, judged)
    note(f"{settled.decision}{f', version {settled.version}' if settled.version else ''}")
    if settled.decision == "waiting":
        announce_waiting(judged)
    return settled


@flow(name="takedown", flow_run_name="takedown of {order.base}", persist_result=False, validate_parameters=True)
def takedown(order: TakedownOrder) -> TakedownOutcome:
    """Unlearns the union of active requests, judges the candidate and promotes it only on a passed verdict."""
    services = open_services()
    registry = services.open_registry()
    plan = plan_run(services, order)
    while True:
        judged, judgement = _make(services, registry, plan)
        try:
            settled = _settle(services, registry, judged)
        except StaleApprovalError:
            again = plan_run(services, order)
            if again.key == plan.key:
                raise
            plan = again  # a newer champion honours requests that came in since: go on from all of them
            continue
        return _outcome(services, judged, settled=settled, judgement=judgement)


def _make(services: Services, registry: Registry, plan: Plan) -> tuple[Entry, Judgement | None]:
    """Returns the recorded judgement of a plan's candidate, made now unless it was before; by one process at a time."""
    lease = services.settings.promotion_lease_seconds
    with keep_lock(
        services.ledger.engine,
        owner=plan.key[:16],
        name=f"run {plan.key[:48]}",
        lease_seconds=lease,
        wait_seconds=RUN_WAIT_SECONDS,
    ) as lock:
        judged = services.ledger.find(judged_key(plan.key))
        if judged is not None:
            return judged, None
        base = _fetch(services, plan)
        candidate = _build(services, plan, base)
        kept = _judge(services, plan, base, candidate)
        lock.ensure_held()
        return _track(services, registry, plan, candidate, kept), kept.judgement


def _outcome(services: Services, judged: Entry, *, settled: Settled, judgement: Judgement | None) -> TakedownOutcome:
    folder = fetch_evidence(services, judged)
    record = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    return TakedownOutcome(
        verdict=record["verdict"],
        reasons=tuple(reason["text"] for reason in record["reasons"]),
        is_void=bool(record["is_void"]),
        decision=settled.decision,
        is_repeated=settled.is_repeated,
        version=settled.version,
        digest=judged.body["digest"],
        evidence=folder,
        run_id=judged.body["run_id"],
        judgement=judgement,
    )
