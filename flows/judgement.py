"""From candidate to judgement, and to evidence on disk and in the object store.

Guarantees:
    1. Whoever made the candidate, it is judged the same way: the judge learns only what must be gone and what must
       stay.
    2. A concept that the detector cannot see is refused by name, never taken for forgotten.
    3. A judgement that was finished and kept is found again by the plan's key.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.checkpoints import Checkpoint, FolderCheckpoint
from flows.pipelines import Pipeline, check_alike, load_pipeline, show_no_loading_bars
from flows.plan import Plan
from flows.progress import OnProgress
from flows.services import Services
from validation import Detectors, Integrity, Judgement, PictureStore, Policy, Sampler, Subject, judge


@dataclass(frozen=True)
class Roles:
    """What a judgement asks for, by role."""

    targets: tuple[Subject, ...]
    retained: tuple[Subject, ...]
    """Named to the engine, or found by it."""
    hidden: tuple[Subject, ...]
    """Everything else that the detector can see, styles included: nobody told the engine of it."""
    unseen: tuple[str, ...]
    """Retained names that the detector has no label for; they cannot be judged, and the report says so."""


def assign_roles(plan: Plan, detectors: Detectors, found: Iterable[str]) -> Roles:
    """Sorts everything the detectors can see into targets, retained and hidden.

    Args:
        plan: The run.
        detectors: What sees the concepts.
        found: Names that the engine found by itself and retained.
    """
    targets = [Subject(s.concept, kind=s.kind, aliases=tuple(s.aliases)) for s in plan.subjects]
    return roles_of(targets, retained=(*plan.retain, *found), detectors=detectors)


def roles_of(targets: Sequence[Subject], *, retained: Iterable[str], detectors: Detectors) -> Roles:
    """Sorts everything the detectors can see into targets, retained (as told) and hidden (the rest)."""
    told = {name.casefold(): name for name in retained}
    taken = {name.casefold() for target in targets for name in (target.name, *target.aliases)}
    styles = detectors.style.labels if detectors.style else ()
    seen = [Subject(name) for name in detectors.object.labels]
    seen += [Subject(name, kind="style") for name in styles if name != "natural"]
    rest = [subject for subject in seen if subject.name.casefold() not in taken]
    visible = {subject.name.casefold() for subject in rest}
    return Roles(
        targets=tuple(targets),
        retained=tuple(subject for subject in rest if subject.name.casefold() in told),
        hidden=tuple(subject for subject in rest if subject.name.casefold() not in told),
        unseen=tuple(sorted(name for key, name in told.items() if key not in visible)),
    )


def load_detectors(folder: Path, device: str) -> Detectors:
    """Reads the classifier and the image-text model that judge."""
    show_no_loading_bars()
    return Detectors.load(folder / "classifier", folder / "clip", device=device)


def default_sampler(pipeline: Pipeline) -> Sampler:
    """Returns how pictures are drawn unless a caller says otherwise: few steps, at the model's own size."""
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    side = getattr(pipeline, "default_sample_size", None) or denoiser.config["sample_size"]
    is_flow = "FlowMatch" in type(pipeline.scheduler).__name__
    scheduler = "FlowMatchEulerDiscreteScheduler" if is_flow else "DPMSolverMultistepScheduler"
    return Sampler(steps=12, guidance=4.0, scheduler=scheduler, pixels=int(side) * int(pipeline.vae_scale_factor))


def judge_checkpoint(
    services: Services,
    *,
    base: Checkpoint | tuple[Path, str],
    candidate: Checkpoint | tuple[Path, str],
    roles: Roles,
    detectors: Detectors,
    policy: Policy,
    integrity: Integrity | None = None,
    data_docs: Path | None = None,
    on_progress: OnProgress | None = None,
    on_attack: OnProgress | None = None,
    pictures: Path | None = None,
) -> Judgement:
    """Judges one checkpoint against its base; a pair of folder and digest is a checkpoint too.

    Args:
        services: The adapters.
        base: The model before.
        candidate: The model after, of any kind.
        roles: What must be gone, and what must stay.
        detectors: What sees the concepts.
        policy: Limits, margins and numbers of pictures.
        integrity: What is known of the candidate's bytes; None takes what the checkpoint attests of itself.
        data_docs: Folder for the Great Expectations site.
        on_progress: Called with pictures done and in all.
        on_attack: Called with steps and pictures of attacks done and in all; None tells `on_progress` of them.
        pictures: Where pictures are kept, instead of this installation's own place.

    Raises:
        scapre.CheckpointError: A checkpoint is damaged, does not fit its base, or is not what its digest says; nothing
            was drawn.
    """
    device = services.settings.resolve_device()
    checkpoints = [given if isinstance(given, Checkpoint) else FolderCheckpoint(*given) for given in (base, candidate)]
    folders = [checkpoint.materialise(services.cache / "put_together") for checkpoint in checkpoints]
    check_alike(*folders)
    before, after = (load_pipeline(folder, device) for folder in folders)
    return judge(
        before,
        after,
        base_digest=checkpoints[0].digest,
        candidate_digest=checkpoints[1].digest,
        targets=roles.targets,
        retained=roles.retained,
        hidden=roles.hidden,
        policy=policy,
        sampler=default_sampler(before),
        detectors=detectors,
        store=PictureStore(pictures or services.pictures),
        device=device,
        batch_size=services.settings.render_batch,
        integrity=integrity or checkpoints[1].attest(folders[1]),
        data_docs=data_docs,
        on_progress=on_progress,
        on_attack=on_attack or on_progress,
    )


def describe_roles(roles: Roles) -> dict[str, Any]:
    """Returns how many concepts had each role, and what could not be judged."""
    return {
        "targets": len(roles.targets),
        "retained": len(roles.retained),
        "hidden": len(roles.hidden),
        "unseen": list(roles.unseen),
    }
