"""The release gate: may this checkpoint ship, given everything that was ever taken down?

Guarantees:
    1. Any checkpoint is judged against every active request, whatever base the request names and whoever made the
       checkpoint; a ledger without an active request answers nothing, and is refused.
    2. The checkpoint is known by the digest of its bytes; the verdict about them is recorded once.
    3. With `unlearn` the ledger is first unlearned from the checkpoint, and what comes out is judged; it appears at
       `out` only if it passed.
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import rfc8785
from prefect import flow
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows import candidate as candidates
from flows import intake
from flows.checkpoints import Checkpoint, FolderCheckpoint, open_checkpoint
from flows.errors import BadRequestError
from flows.evidence import Kept, keep_bundle
from flows.judgement import Roles, assign_roles, describe_roles, judge_checkpoint
from flows.plan import Plan, make_plan
from flows.progress import QUIET_SECONDS, both
from flows.questions import Question, choose_detectors
from flows.regressions import subject_names
from flows.requests import TakedownRequest
from flows.run_page import show_judgement, shown_progress
from flows.services import Services, open_services
from flows.steps import step
from flows.takedown import DEFAULT_POLICY
from flows.tracking import EXPERIMENT, log_judgement
from flows.turns import turn_to_render
from infra.chain import EntryKind
from infra.registry import Registry
from scapre.writing import new_folder
from validation import Detectors, Judgement, Subject, load_policy, parse_policy
from validation.errors import ValidationError
from validation.plan import load_packs

ANY_BASE = "release"


class NothingToAskError(ValidationError):
    """A gate with nothing to judge against must not pass."""


class ReleaseOrder(BaseModel):
    """What one gate is asked; the form that Prefect shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Path = Field(description="folder in the diffusers layout, single file, LoRA or edit")
    base: str = Field(
        default="reference",
        min_length=1,
        description="the model before: name of a base in the object store, or a folder; with `unlearn` not used",
    )
    policy: Path | None = Field(default=None, description="policy file; default: the one that ships with the flows")
    detectors: tuple[str, ...] = Field(default=(), description="`classifier:FOLDER`, `clip:FOLDER` or `nudenet`")
    unlearn: bool = Field(default=False, description="first unlearn the ledger from the checkpoint")
    method: str = Field(default="scapre", description="unlearning method, to unlearn")
    dials: dict[str, float | int | str] = Field(default_factory=dict, description="dials of the method, to unlearn")
    out: Path | None = Field(default=None, description="new folder for what was unlearned, if it passes")

    @model_validator(mode="after")
    def _out_goes_with_unlearn(self) -> "ReleaseOrder":
        if self.unlearn != (self.out is not None):
            raise ValueError("expected `unlearn` and `out` together: what is unlearned must go somewhere")
        if (self.dials or "method" in self.model_fields_set) and not self.unlearn:
            raise ValueError("expected no `method` or `dials` without `unlearn`: there is nothing to make")
        return self


@dataclass(frozen=True)
class Ask:
    """One question to the gate, fixed before anything is made or drawn."""

    checkpoint: Checkpoint
    base: FolderCheckpoint
    plan: Plan
    requests: dict[str, TakedownRequest]
    detectors: Detectors
    unlearn: bool
    key: str


@dataclass(frozen=True)
class ReleaseOutcome:
    """The gate's answer."""

    judgement: Judgement
    evidence: Kept
    digest: str
    """Of what was judged."""
    request_ids: tuple[str, ...]
    out: Path | None
    """Where the unlearned checkpoint lies, if it passed."""


@flow(name="release gate", flow_run_name="release against {order.base}", persist_result=False, validate_parameters=True)
def release_gate(order: ReleaseOrder) -> ReleaseOutcome:
    """Judges a checkpoint against the active ledger; with `unlearn`, makes one that forgot it first."""
    if order.out is not None and order.out.exists():
        raise BadRequestError(f"expected a new folder, found {order.out}, which exists; choose another or remove it")
    services = open_services()
    ask = prepare(services, order)
    judged: Checkpoint = ask.checkpoint
    found: tuple[str, ...] = ()
    if ask.unlearn:
        candidate = _unlearn(services, ask)
        judged = FolderCheckpoint(candidate.folder, candidate.digest)
        found = tuple(candidate.edit_facts["diagnostics"].get("retain_found", ()))
    kept = _judge(services, ask, judged, assign_roles(ask.plan, ask.detectors, found))
    _record(services, services.open_registry(), ask, judged, kept)
    out = None
    if order.out is not None and kept.judgement.verdict == "passed":
        with new_folder(order.out, overwrite=False) as building:
            shutil.copytree(judged.path, building, dirs_exist_ok=True)
        out = order.out
    return ReleaseOutcome(kept.judgement, kept, judged.digest, ask.plan.request_ids, out)


def prepare(services: Services, order: ReleaseOrder) -> Ask:
    """Returns what the gate would ask; changes nothing.

    Raises:
        NothingToAskError: No request is active.
        BadRequestError: Requests contradict each other, or the checkpoint cannot be unlearned.
        scapre.CheckpointError: The checkpoint, or its base, is not readable.
    """
    policy = load_policy(order.policy or DEFAULT_POLICY)
    requests = intake.active_requests(services)
    if not requests:
        raise NothingToAskError(
            "expected at least one active request to judge against, found none; check SCAPRE_LEDGER_URL, or add one "
            "with `scapre request add FILE`: a gate that asks nothing must not pass"
        )
    base, checkpoint = _open(services, order)
    plan = make_plan(
        _of_any_base(requests),
        base=ANY_BASE,
        base_digest=base.digest,
        method=order.method,
        dials=order.dials,
        withheld=(),
        policy=policy.model_dump(mode="json"),
        packs={name: pack.digest for name, pack in load_packs(policy).items()},
    )
    targets = tuple(Subject(s.concept, kind=s.kind, aliases=tuple(s.aliases)) for s in plan.subjects)
    detectors = choose_detectors(order.detectors, Question(targets, plan.retain), services.settings)
    question = {
        "plan": plan.key,
        "checkpoint": checkpoint.digest,
        "unlearn": order.unlearn,
        "detectors": dict(detectors.digests()),
    }
    key = hashlib.sha256(rfc8785.dumps(question)).hexdigest()
    return Ask(checkpoint, base, plan, requests, detectors, order.unlearn, key)


def describe(services: Services, order: ReleaseOrder) -> list[str]:
    """Returns what the gate would ask, in words."""
    ask = prepare(services, order)
    roles = assign_roles(ask.plan, ask.detectors, ())
    return [
        f"checkpoint  {ask.checkpoint.kind}, digest {ask.checkpoint.digest}",
        f"base        digest {ask.base.digest}",
        f"requests    {', '.join(ask.plan.request_ids)}",
        f"concepts    {len(roles.targets)} must be gone, {len(roles.retained)} named ones must survive",
        f"unlearn     {f'first, to {order.out}' if ask.unlearn else 'no, judged as it is'}",
        f"key         {ask.key}",
    ]


def _open(services: Services, order: ReleaseOrder) -> tuple[FolderCheckpoint, Checkpoint]:
    given = order.checkpoint if order.unlearn else Path(order.base)
    if given.is_dir() or order.unlearn:
        base = open_checkpoint(given)
        if not isinstance(base, FolderCheckpoint):
            raise BadRequestError(
                f"expected a folder in diffusers' layout, found a {base.kind} at {given}; "
                "`scapre export` and diffusers turn one into the other"
            )
    else:
        stored = candidates.fetch_base(services, order.base)
        base = FolderCheckpoint(stored.folder, stored.digest)
    return base, base if order.unlearn else open_checkpoint(order.checkpoint, base=base)


def _of_any_base(requests: dict[str, TakedownRequest]) -> dict[str, TakedownRequest]:
    """A request names the base in which the concept was found; a release answers for all of them."""
    return {name: request.model_copy(update={"base": ANY_BASE}) for name, request in requests.items()}


@step("unlearn the ledger")
def _unlearn(services: Services, ask: Ask) -> candidates.Candidate:
    base = candidates.Base(ask.plan.base, ask.base.digest, ask.base.path)
    candidates.preflight(ask.plan, base)
    with shown_progress("reading", of="texts", after=QUIET_SECONDS) as on_progress:
        return candidates.build_candidate(services, ask.plan, base, on_progress=on_progress)


@step("judge checkpoint")
def _judge(services: Services, ask: Ask, judged: Checkpoint, roles: Roles) -> Kept:
    with turn_to_render(services, ask.key) as stay, shown_progress("rendering") as on_progress:
        judgement = judge_checkpoint(
            services,
            base=ask.base,
            candidate=judged,
            roles=roles,
            detectors=ask.detectors,
            policy=parse_policy(ask.plan.policy, source="the plan"),
            on_progress=both(on_progress, stay),
        )
    request = {"request_ids": list(ask.plan.request_ids), "plan": ask.key, "roles": describe_roles(roles)}
    kept = keep_bundle(services, ask.key, judgement, request=request)
    notes = {"checkpoint": ask.checkpoint.kind, "requests": ", ".join(ask.plan.request_ids)}
    show_judgement(kept, purpose="release", names=subject_names(ask.requests), notes=notes)
    return kept


@step("record")
def _record(services: Services, registry: Registry, ask: Ask, judged: Checkpoint, kept: Kept) -> None:
    key = f"release/{ask.key}"
    if services.ledger.find(key) is not None:
        return
    registry.discard_runs(EXPERIMENT, tag="scapre.key", value=ask.key)  # logged by a process that was killed
    run_id = log_judgement(
        registry,
        kept.judgement,
        kept.folder,
        name=f"release {judged.digest[:12]}",
        tags={
            "scapre.kind": "release",
            "scapre.key": ask.key,
            "scapre.candidate_digest": judged.digest,
            "scapre.base_digest": ask.base.digest,
            "scapre.requests": ",".join(ask.plan.request_ids),
        },
        params={"checkpoint": ask.checkpoint.kind, "unlearned": ask.unlearn, "requests": len(ask.plan.request_ids)},
    )
    body = {
        "key": ask.key,
        "digest": judged.digest,
        "source_digest": ask.checkpoint.digest,
        "base_digest": ask.base.digest,
        "unlearned": ask.unlearn,
        "verdict": kept.judgement.verdict,
        "is_void": kept.judgement.is_void,
        "request_ids": list(ask.plan.request_ids),
        "evidence": kept.digest,
        "evidence_uri": kept.uri,
        "run_id": run_id,
    }
    services.ledger.append(EntryKind.RELEASE_JUDGED, body, idempotency_key=key)
