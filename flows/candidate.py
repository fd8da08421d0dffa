"""From base to candidate: fetch the base, unlearn the union of all active requests, store what came out.

Guarantees:
    1. The base is verified against its digest before it is read.
    2. A candidate is addressed by its plan's key: a finished one is found again, never made twice.
    3. Large bytes go to the object store, never through MLflow or a Prefect result.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scapre
from flows.errors import BadRequestError, UnknownBaseError
from flows.plan import Plan, candidate_key
from flows.progress import OnProgress
from flows.services import Services


@dataclass(frozen=True)
class Base:
    """A base checkpoint on this machine."""

    name: str
    digest: str
    folder: Path


@dataclass(frozen=True)
class Candidate:
    """An edited checkpoint on this machine and in the object store, under `plan.candidate_key`."""

    digest: str
    """Digest of the edited checkpoint's manifest."""
    edit_digest: str
    folder: Path
    edit_path: Path
    edit_facts: dict[str, Any]
    """What the edit says of itself: method, dials, drift, retained names it found."""


def register_base(services: Services, name: str, folder: Path) -> str:
    """Puts a checkpoint folder into the object store as the base `name`; returns its digest. Idempotent.

    Raises:
        scapre.CheckpointError: The folder is not a checkpoint that can be unlearned and merged.
    """
    scapre.check_mergeable(scapre.inspect_checkpoint(folder))
    digest = services.store.put_directory(f"bases/{name}/files", folder)
    services.store.put_bytes(f"bases/{name}/base.json", json.dumps({"digest": digest}).encode())
    return digest


def base_digest(services: Services, name: str) -> str:
    """Returns the recorded digest of a base model.

    Raises:
        UnknownBaseError: The object store holds no base of that name.
    """
    key = f"bases/{name}/base.json"
    if not services.store.exists(key):
        known = sorted({path.split("/")[1] for path in services.store.list_keys("bases/")})
        raise UnknownBaseError(
            f"expected a base model in the object store, found {name!r}, which it does not hold; known: "
            f"{', '.join(known) or 'none'}; add it with `scapre base add {name} FOLDER`"
        )
    return str(json.loads(services.store.get_bytes(key))["digest"])


def fetch_base(services: Services, name: str, *, digest: str | None = None) -> Base:
    """Brings a base checkpoint to this machine; what is already here and whole is not fetched again.

    Args:
        services: The adapters.
        name: Which base.
        digest: The base that something was made from; without it, the one on record now.
    """
    digest = digest or base_digest(services, name)
    folder = services.cache / "checkpoints" / digest
    services.store.get_directory(f"bases/{name}/files", folder, digest=digest)
    scapre.inspect_checkpoint(folder)
    return Base(name, digest, folder)


def build_candidate(services: Services, plan: Plan, base: Base, *, on_progress: OnProgress | None = None) -> Candidate:
    """Unlearns the plan's concepts from the base and stores edit and edited checkpoint.

    Args:
        services: The adapters.
        plan: What to unlearn.
        base: What it is unlearned from.
        on_progress: Called with texts read and needed.
    """
    from scapre.methods import find_method  # takes as long as torch

    work = services.cache / "candidates" / plan.key
    edit_path, folder = work / "edit.safetensors", work / "checkpoint"
    if edit_path.exists() and folder.exists():
        edit = scapre.Edit.load(edit_path)
    else:
        shutil.rmtree(work, ignore_errors=True)  # a half-made candidate of an interrupted run
        work.mkdir(parents=True)
        with scapre.merging(base.folder, folder, memories=find_method(plan.method).edits_memories) as put_on:
            edit = scapre.unlearn(
                base.folder,
                concepts_of(plan),
                retain=list(plan.retain),
                method=plan.method,
                withheld=plan.withheld,
                cache=services.settings.feature_cache,
                on_progress=on_progress,
                **plan.dials,
            )
            put_on(edit)
        edit.save(edit_path)
    digest = services.store.put_directory(candidate_key(plan.key), folder)
    services.store.put_file(f"candidates/{plan.key}/edit.safetensors", edit_path)
    return Candidate(
        digest=digest,
        edit_digest=edit.digest,
        folder=folder,
        edit_path=edit_path,
        edit_facts={
            "method": edit.spec.method,
            "dials": dict(edit.spec.dials),
            "edit_digest": edit.digest,
            "base_digest": edit.base_digest,
            "diagnostics": edit.diagnostics,
        },
    )


def preflight(plan: Plan, base: Base) -> None:
    """Refuses a plan that cannot be carried out, before anything is made.

    Raises:
        BadRequestError: A concept, retained name or dial does not fit.
        scapre.ScaPreError: The engine refuses the checkpoint.
    """
    concepts_of(plan)
    scapre.check_mergeable(scapre.inspect_checkpoint(base.folder))


def concepts_of(plan: Plan) -> list[scapre.Concept]:
    """Returns the plan's subjects as the engine takes them.

    Raises:
        BadRequestError: One of them is nothing the engine can take.
    """
    try:
        return [
            scapre.Concept(s.concept, kind=s.kind, aliases=tuple(s.aliases), anchor=s.anchor) for s in plan.subjects
        ]
    except scapre.ScaPreError as error:
        raise BadRequestError(str(error)) from error
