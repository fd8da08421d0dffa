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

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from flows.plan import Plan
from flows.progress import OnProgress
from flows.services import Services
from validation import Detectors, Integrity, Judgement, PictureStore, Policy, Sampler, Subject, judge

UNKNOWN_MAKER = Integrity(
    True, "the checkpoint is judged as it is: what was changed in it, and by whom, was not part of the question"
)


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


def _show_no_loading_bars() -> None:
    """Loading takes a moment; the bar that matters is the one of rendering."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def load_detectors(folder: Path, device: str) -> Detectors:
    """Reads the classifier and the image-text model that judge."""
    _show_no_loading_bars()
    return Detectors.load(folder / "classifier", folder / "clip", device=device)


def load_pipeline(folder: Path, device: str) -> StableDiffusionPipeline:
    """Reads a checkpoint folder for drawing; never from a hub, never a pickle."""
    _show_no_loading_bars()
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, safety_checker=None, requires_safety_checker=False
    )
    return pipeline.to(device)


def default_sampler(pipeline: StableDiffusionPipeline) -> Sampler:
    """Returns how pictures are drawn unless a caller says otherwise: few steps, at the model's own size."""
    pixels = int(pipeline.unet.config["sample_size"]) * int(pipeline.vae_scale_factor)
    return Sampler(steps=12, guidance=4.0, scheduler="DPMSolverMultistepScheduler", pixels=pixels)


def judge_checkpoint(
    services: Services,
    *,
    base: tuple[Path, str],
    candidate: tuple[Path, str],
    roles: Roles,
    detectors: Detectors,
    policy: Policy,
    integrity: Integrity | None,
    data_docs: Path | None,
    on_progress: OnProgress | None,
) -> Judgement:
    """Judges one checkpoint against its base; both are given as folder and digest.

    Args:
        services: The adapters.
        base: Folder and digest of the model before.
        candidate: Folder and digest of the model after.
        roles: What must be gone, and what must stay.
        detectors: What sees the concepts.
        policy: Limits, margins and numbers of pictures.
        integrity: What is known of the candidate's bytes; None for a checkpoint of unknown making.
        data_docs: Folder for the Great Expectations site.
        on_progress: Called with pictures done and in all.
    """
    device = services.settings.resolve_device()
    before, after = (load_pipeline(folder, device) for folder, _ in (base, candidate))
    return judge(
        before,
        after,
        base_digest=base[1],
        candidate_digest=candidate[1],
        targets=roles.targets,
        retained=roles.retained,
        hidden=roles.hidden,
        policy=policy,
        sampler=default_sampler(before),
        detectors=detectors,
        store=PictureStore(services.pictures),
        device=device,
        batch_size=services.settings.render_batch,
        integrity=integrity,
        data_docs=data_docs,
        on_progress=on_progress,
    )


def describe_roles(roles: Roles) -> dict[str, Any]:
    """Returns how many concepts had each role, and what could not be judged."""
    return {
        "targets": len(roles.targets),
        "retained": len(roles.retained),
        "hidden": len(roles.hidden),
        "unseen": list(roles.unseen),
    }
