"""Pictures: drawn once, kept under what decides them, and never mistaken for another model's.

Guarantees:
    1. A picture is addressed by the model's digest, the prompt, the seed and the sampler: when any of them changes, the
       old picture is not found.
    2. A picture that is in the store and intact is never drawn again; a damaged one is.
    3. Each picture's noise comes from its own CPU generator, so it does not depend on the device or on what else is in
       its batch.
    4. A run killed half-way loses the batch it was drawing and nothing else.
    5. A safety checker is off while drawing, since it blacks pictures out, which would pass for forgetting.
"""

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from validation.errors import RenderingError
from validation.probes import Probe

SCHEDULERS = (
    "DPMSolverMultistepScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
Pipeline = Any
"""A diffusers text-to-image pipeline. Its classes share no type that says what a call takes."""
Progress = Callable[[int, int], None]
"""Called with pictures done and pictures in all."""


@dataclass(frozen=True)
class Sampler:
    """How a picture is drawn from its noise."""

    steps: int
    guidance: float
    scheduler: str
    """Name of a diffusers scheduler, one of `SCHEDULERS`; it takes the pipeline's own noise schedule."""
    pixels: int
    """Side of the square picture."""

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise RenderingError(
                f"expected a scheduler out of {', '.join(SCHEDULERS)}, found {self.scheduler!r}; choose one of those"
            )
        if self.steps < 1 or self.pixels < 8 or self.guidance < 0:
            raise RenderingError(
                f"expected steps >= 1, pixels >= 8 and guidance >= 0, found {self.steps}, {self.pixels} and "
                f"{self.guidance:g}; correct the sampler"
            )


_DAMAGED = (OSError, SyntaxError, ValueError, struct.error)
"""What Pillow raises on damaged PNG files."""
_LAST_CHUNK = b"IEND\xaeB`\x82"


class PictureStore:
    """A folder of PNG files addressed by what decides a picture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def address(model_digest: str, probe: Probe, sampler: Sampler) -> str:
        """Returns the hexadecimal address of the picture that a model draws for a probe."""
        key = {"model": model_digest, "probe": probe.digest, "sampler": asdict(sampler)}
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()

    def path(self, address: str) -> Path:
        """Returns where a picture lies, or would."""
        return self.folder / address[:2] / f"{address}.png"

    def holds(self, address: str, *, pixels: int) -> bool:
        """Whether an intact picture of the right size is there; a damaged one counts as absent."""
        try:
            return _decode(self.path(address)).size == (pixels, pixels)
        except _DAMAGED:
            return False

    def read(self, address: str) -> Image.Image:
        """Returns a picture, RGB.

        Raises:
            RenderingError: It is absent or damaged.
        """
        try:
            return _decode(self.path(address))
        except _DAMAGED as error:
            raise RenderingError(
                f"expected an intact picture at {self.path(address)}, found {error}; render again, only it is redrawn"
            ) from error

    def digest(self, address: str) -> str:
        """Returns SHA-256 of a picture's file."""
        return hashlib.sha256(self.path(address).read_bytes()).hexdigest()

    def write(self, address: str, pixels: NDArray[np.float32]) -> None:
        """Stores a picture, `[side, side, 3]` in [0, 1]; a reader sees all of it or nothing."""
        # NaN becomes black on purpose: a model that diverged draws blanks, and the picture control finds those.
        levels = (np.nan_to_num(pixels, nan=0.0).clip(0, 1) * 255).round().astype(np.uint8)
        path = self.path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                Image.fromarray(levels).save(file, format="PNG")
            Path(beside).replace(path)
        finally:
            Path(beside).unlink(missing_ok=True)


def _decode(path: Path) -> Image.Image:
    content = path.read_bytes()
    if not content.endswith(_LAST_CHUNK):  # Pillow forgives a file that ends early
        raise ValueError("a file cut short")
    with Image.open(BytesIO(content)) as picture:
        picture.verify()
    with Image.open(BytesIO(content)) as picture:
        return picture.convert("RGB")


def render(
    pipeline: Pipeline,
    probes: Sequence[Probe],
    *,
    store: PictureStore,
    model_digest: str,
    sampler: Sampler,
    batch_size: int = 32,
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> list[str]:
    """Draws what the store does not hold yet and returns every probe's address, in order.

    Args:
        pipeline: A diffusers text-to-image pipeline; its scheduler and safety checker are put back afterwards.
        probes: What to draw.
        store: Where finished pictures are kept.
        model_digest: Identity of the model's weights, as `weights_digest` returns it.
        sampler: How to draw.
        batch_size: Pictures per call of the pipeline.
        device: Where to draw, as torch names it.
        on_progress: Called once before the first batch and after each.

    Raises:
        RenderingError: A prompt does not fit the text encoder, or the pipeline does not do what the sampler says.
    """
    addresses = [store.address(model_digest, probe, sampler) for probe in probes]
    wanted = dict(zip(addresses, probes, strict=True))  # the same picture asked for twice is one picture
    missing = [address for address in wanted if not store.holds(address, pixels=sampler.pixels)]
    done, total = len(wanted) - len(missing), len(wanted)
    if on_progress:
        on_progress(done, total)
    if not missing:
        return addresses
    _refuse_long_prompts(pipeline, [wanted[address].prompt for address in missing])
    pipeline.to(device)
    with _drawing(pipeline, sampler):
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            for address, pixels in zip(batch, _draw(pipeline, [wanted[a] for a in batch], sampler), strict=True):
                store.write(address, pixels)
            done += len(batch)
            if on_progress:
                on_progress(done, total)
    return addresses


def _draw(pipeline: Pipeline, probes: Sequence[Probe], sampler: Sampler) -> NDArray[np.float32]:
    with torch.inference_mode():
        pictures = pipeline(
            prompt=[probe.prompt for probe in probes],
            generator=[torch.Generator("cpu").manual_seed(probe.seed) for probe in probes],
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance,
            height=sampler.pixels,
            width=sampler.pixels,
            output_type="np",
        ).images
    expected = (len(probes), sampler.pixels, sampler.pixels, 3)
    if pictures.shape != expected:
        raise RenderingError(
            f"expected pictures of shape {expected}, found {pictures.shape}; check the sampler's pixels"
        )
    return pictures


def build_scheduler(pipeline: Pipeline, name: str) -> Any:
    """Returns the named scheduler with the pipeline's own noise schedule.

    Raises:
        RenderingError: A flow-matching model is asked for a diffusion scheduler, or the reverse.
    """
    import diffusers

    own = type(pipeline.scheduler).__name__
    if ("FlowMatch" in name) != ("FlowMatch" in own):
        raise RenderingError(
            f"expected a scheduler of the same family as the model's {own}, found {name}; diffusion and flow-matching "
            "models cannot swap schedulers"
        )
    return getattr(diffusers, name).from_config(pipeline.scheduler.config)


@contextmanager
def _drawing(pipeline: Pipeline, sampler: Sampler) -> Generator[None]:
    """Gives the pipeline the sampler's scheduler, no safety checker, no progress bar; then takes them back."""
    scheduler, checker = pipeline.scheduler, getattr(pipeline, "safety_checker", None)
    bar = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.scheduler = build_scheduler(pipeline, sampler.scheduler)
    if checker is not None:
        pipeline.safety_checker = None
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline.scheduler = scheduler
        if checker is not None:
            pipeline.safety_checker = checker
        if hasattr(pipeline, "set_progress_bar_config"):
            pipeline.set_progress_bar_config(**bar)


def safety_checker_state(pipeline: Pipeline) -> str:
    """Returns how the protocol records the safety checker: `absent`, or `switched off` while drawing."""
    return "absent" if getattr(pipeline, "safety_checker", None) is None else "switched off"


def _refuse_long_prompts(pipeline: Pipeline, prompts: Sequence[str]) -> None:
    """A truncated prompt may have lost its concept; its picture would count as forgotten."""
    for prompt in dict.fromkeys(prompts):
        if excess := excess_of(pipeline, prompt):
            raise RenderingError(
                f"expected {excess} in {prompt!r}; shorten the template or the alias, or the text encoder would never "
                "see the end of it"
            )


def excess_of(pipeline: Pipeline, prompt: str) -> str | None:
    """Returns by how much a prompt is too long for a pipeline's tokenizers; None when each reads all of it."""
    for name, part in pipeline.components.items():
        limit = getattr(part, "model_max_length", None)
        if name.startswith("tokenizer") and part is not None and limit is not None:
            tokens = len(part(prompt, verbose=False).input_ids)  # its own warning would name no remedy
            if tokens > limit:
                return f"prompts of at most {limit} tokens, found {tokens}"
    return None


def weights_digest(pipeline: Pipeline) -> str:
    """Returns SHA-256 over a pipeline's class, weights and tokenizers: what draws otherwise has another digest."""
    total = hashlib.sha256(f"{type(pipeline).__name__}\n".encode())
    for name, part in sorted(pipeline.components.items()):
        if name == "safety_checker":  # never draws
            continue
        if isinstance(part, torch.nn.Module):
            total.update(f"{name} {type(part).__name__}\n".encode())
            _hash_tensors(total, part)
        elif hasattr(part, "get_vocab"):
            vocabulary = json.dumps(part.get_vocab(), sort_keys=True)
            total.update(f"{name} {type(part).__name__} {part.model_max_length}\n{vocabulary}\n".encode())
        elif hasattr(part, "config"):  # the noise schedule decides the picture too
            config = json.dumps({k: v for k, v in part.config.items() if k[0] != "_"}, sort_keys=True, default=str)
            total.update(f"{name} {type(part).__name__}\n{config}\n".encode())
    return total.hexdigest()


def _hash_tensors(total: "hashlib._Hash", module: torch.nn.Module) -> None:
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total.update(memoryview(content.numpy()))
