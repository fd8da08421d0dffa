"""Keeping what a verdict rests on: a bundle on this machine and its copy in the object store."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.candidate import Candidate
from flows.judgement import Roles, describe_roles
from flows.plan import Plan
from flows.services import Services
from infra.chain import Entry
from validation import GateResult, Judgement
from validation.evidence import evidence_digest, write_evidence
from validation.formats import exact_percent, percent_up
from validation.probe_packs import is_further_pack
from validation.report import effects, render_report


@dataclass(frozen=True)
class Kept:
    """A judgement whose evidence is kept."""

    judgement: Judgement
    folder: Path
    digest: str
    """SHA-256 of the bundle's manifest."""
    uri: str


def evidence_folder(services: Services, plan: Plan) -> Path:
    """Returns where a plan's bundle lies on this machine."""
    return services.evidence / plan.key[:16]


def fetch_evidence(services: Services, judged: Entry) -> Path:
    """Returns the bundle of a recorded judgement on this machine, fetched from the object store if it is not there."""
    key, folder = judged.body["key"], services.evidence / judged.body["key"][:16]
    if not (folder / "verdict.json").is_file():
        services.store.get_directory(f"evidence/{key}", folder)
    return folder


def keep_evidence(
    services: Services, plan: Plan, candidate: Candidate, judgement: Judgement, *, roles: Roles, data_docs: Path | None
) -> Kept:
    """Writes the bundle of a takedown's judgement and copies it to the object store."""
    request = {"request_ids": list(plan.request_ids), "plan": plan.key, "roles": describe_roles(roles)}
    return keep_bundle(services, plan.key, judgement, request=request, edit=candidate.edit_facts, data_docs=data_docs)


def keep_bundle(
    services: Services,
    key: str,
    judgement: Judgement,
    *,
    request: Mapping[str, Any],
    edit: Mapping[str, Any] | None = None,
    data_docs: Path | None = None,
) -> Kept:
    """Writes a judgement's bundle and copies it to the object store.

    Args:
        services: The adapters.
        key: What finds it again.
        judgement: What was decided.
        request: What was asked: `request_ids`, `plan`, `roles`.
        edit: What the engine says of its work, when it made the candidate.
        data_docs: The Great Expectations site.
    """
    links = {"Data Docs": "data_docs/index.html"} if data_docs else {}
    extra = {"request.json": request} | ({"edit.json": edit} if edit else {})
    folder = write_evidence(
        judgement,
        services.evidence / key[:16],
        report_html=render_report(judgement, edit=edit, request=request, links=links),
        data_docs=data_docs,
        extra=extra,
    )
    services.store.put_directory(f"evidence/{key}", folder)
    return Kept(judgement, folder, evidence_digest(folder), services.store.locate(f"evidence/{key}"))


def summary_lines(judgement: Judgement) -> list[str]:
    """Returns a judgement's figures for a terminal, rounded as in the report, the targets first."""
    lines = []
    for gate in judgement.gates:
        if gate.gate == "forgetting" and gate.concept is not None:
            name = f"{gate.concept} ({gate.pack})" if is_further_pack(gate.pack) else gate.concept
            found = f"{_counts(gate.hits, gate.pictures)}, {_bound(gate)}" if gate.pictures else gate.reason
            lines.append(f"{_state(gate):<12} {name:<28} {found}")
    lines += [f"{_state(g):<12} {g.reason}" for g in judgement.gates if g.gate == "robustness"]
    lines += [f"{_state(g):<12} {g.gate}: {g.reason}" for g in judgement.gates if g.concept is None]
    lines += [f"{'reported':<12} {text}" for text in effects.sentences(judgement)]
    return lines


def _state(gate: GateResult) -> str:
    return gate.verdict if gate.is_gated else "reported"


def _counts(hits: int | None, pictures: int) -> str:
    return f"still drawn in {hits} of {pictures}"


def _bound(gate: GateResult) -> str:
    return f"upper bound {percent_up(gate.upper)} (limit {exact_percent(gate.limit)})"
