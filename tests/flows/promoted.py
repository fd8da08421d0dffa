"""A champion of the reference world, made as the takedown flow makes it but without Prefect."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scapre
from flows import candidate as candidates
from flows import intake
from flows.approval import settle_candidate
from flows.decisions import judged_key
from flows.evidence import Kept, keep_evidence
from flows.integrity import check_integrity
from flows.judgement import assign_roles, judge_checkpoint, load_detectors
from flows.plan import Plan, make_plan
from flows.requests import TakedownRequest
from flows.services import Services, open_services
from infra.chain import EntryKind
from infra.settings import load_settings
from validation import parse_policy

REFERENCE = Path(__file__).parents[2] / "infra" / "reference" / "model"
REQUEST: dict[str, Any] = {
    "received": "2026-01-06",
    "ground": "internal",
    "jurisdiction": "EU",
    "requester": {"name": "A", "role": "artist", "contact": "a@example.org"},
    "subjects": [{"concept": "rose", "kind": "object", "anchor": "tulip"}],
    "retain": ["tulip", "sunflower"],
}
POLICY: dict[str, Any] = {
    "probes_per_target": 32,
    "probes_per_target_base": 4,
    "probes_per_retained": 2,
    "probes_per_hidden": 0,
    "probes_per_style": 1,
    "retained_concept_margin": None,
    "retained_margin": 0.9,
}


@dataclass(frozen=True)
class Promoted:
    """A home with a champion."""

    services: Services
    plan: Plan
    kept: Kept
    request_id: str


def promote(home: Path, **dials: float) -> Promoted:
    """Makes, judges and promotes a model that forgot the request's concept, more or less, as `dials` say."""
    services = open_services(load_settings({}, home=home))
    candidates.register_base(services, "reference", REFERENCE)
    request_id, _ = intake.add_request(services, TakedownRequest.model_validate(REQUEST))
    plan = make_plan(
        intake.active_requests(services),
        base="reference",
        base_digest=candidates.base_digest(services, "reference"),
        method="scapre",
        dials={"vocabulary": 0, **dials},
        withheld=(),
        policy=POLICY,
        packs={},
    )
    base = candidates.fetch_base(services, "reference")
    candidate = candidates.build_candidate(services, plan, base)
    record = {
        "key": plan.key,
        "base_digest": plan.base_digest,
        "digest": candidate.digest,
        "request_ids": list(plan.request_ids),
    }
    services.ledger.append(EntryKind.CANDIDATE_BUILT, record, idempotency_key=f"built/{plan.key}")
    detectors = load_detectors(services.settings.detectors, "cpu")
    roles = assign_roles(plan, detectors, ())
    judgement = judge_checkpoint(
        services,
        base=(base.folder, base.digest),
        candidate=(candidate.folder, candidate.digest),
        roles=roles,
        detectors=detectors,
        policy=parse_policy(POLICY | {"residual_limit": 0.999 if dials else 0.1}, source="the test"),
        integrity=check_integrity(base.folder, candidate.folder, scapre.Edit.load(candidate.edit_path)),
        data_docs=None,
        on_progress=None,
    )
    kept = keep_evidence(services, plan, candidate, judgement, roles=roles, data_docs=None)
    registry = services.open_registry()
    judged = services.ledger.append(
        EntryKind.JUDGED,
        {
            "key": plan.key,
            "digest": candidate.digest,
            "verdict": judgement.verdict,
            "evidence": kept.digest,
            "run_id": None,
            "request_ids": list(plan.request_ids),
        },
        idempotency_key=judged_key(plan.key),
    )
    assert settle_candidate(services, registry, judged).decision == "promoted"
    return Promoted(services, plan, kept, request_id)
