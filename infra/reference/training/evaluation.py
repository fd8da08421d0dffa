"""Stage `evaluate`: what the reference model can do, by its own classifier, and a contact sheet to look at."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from transformers import ResNetForImageClassification

from infra.reference import world
from infra.reference.training.autoencoder import to_tensor

STEPS = 15
GUIDANCE = 4.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracy:
    """Share of generated pictures recognised as what the prompt named."""

    by_object: dict[str, float]
    by_style: dict[str, float]
    """Both are judged on pictures of random objects in that style: the style head."""
    objects_in_style: float
    """Object head on the same styled pictures."""


def generate(
    pipeline: StableDiffusionPipeline, prompts: list[str], *, first_seed: int, batch: int = 132
) -> NDArray[np.uint8]:
    """Returns one picture per prompt, `[n, side, side, 3]`; picture i starts from seed `first_seed + i`."""
    pictures = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(first_seed + start + i) for i in range(len(part))]
        output = pipeline(
            part, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="np"
        )
        pictures.append((output.images * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def measure(
    pipeline: StableDiffusionPipeline, classifier: ResNetForImageClassification, *, per_concept: int, seed: int
) -> tuple[Accuracy, NDArray[np.uint8]]:
    """Generates `per_concept` pictures of every object and style; returns accuracies and the pictures of objects."""
    names = [o.name for o in world.load_objects()]
    prompts = [f"a photo of {world.with_article(name)}" for name in names] * per_concept
    pictures = generate(pipeline, prompts, first_seed=seed)
    right = _logits(classifier, pictures)[:, : len(names)].argmax(1).numpy() == np.tile(
        np.arange(len(names)), per_concept
    )
    by_object = dict(zip(names, right.reshape(per_concept, -1).mean(0).tolist(), strict=True))

    styles = world.load_styles()
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(names), size=(len(styles), per_concept))
    styled = [
        f"{world.with_article(names[i])} in {s} style" for s, row in zip(styles, chosen, strict=True) for i in row
    ]
    logits = _logits(classifier, generate(pipeline, styled, first_seed=seed + 100_000))
    style_right = logits[:, len(names) :].argmax(1).numpy().reshape(len(styles), per_concept)
    by_style = {s: float((style_right[k] == k + 1).mean()) for k, s in enumerate(styles)}
    object_right = float((logits[:, : len(names)].argmax(1).numpy() == chosen.ravel()).mean())
    return Accuracy(by_object, by_style, object_right), pictures


def contact_sheet(pictures: NDArray[np.uint8], path: Path, *, columns: int = 22, enlarge: int = 2) -> None:
    """Writes the first picture of every object, in the order of `world.json`."""
    count, side = len(world.load_objects()), world.PICTURE_PIXELS
    sheet = Image.new("RGB", (columns * side, -(-count // columns) * side))
    for i in range(count):
        sheet.paste(Image.fromarray(pictures[i]), (i % columns * side, i // columns * side))
    sheet.resize((sheet.width * enlarge, sheet.height * enlarge), Image.Resampling.NEAREST).save(path, optimize=True)


def _logits(classifier: ResNetForImageClassification, pictures: NDArray[np.uint8]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([classifier(pixel_values=part).logits for part in to_tensor(pictures).split(256)]).clone()
