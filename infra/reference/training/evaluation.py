"""Stage `evaluate`: what the reference model can do, by its own classifier, and a contact sheet to look at."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from transformers import ResNetForImageClassification

from infra.reference import world
from infra.reference.training import classifier, dataset
from infra.reference.training.autoencoder import to_tensor

STEPS = 12
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
    pipeline: StableDiffusionPipeline, judge: ResNetForImageClassification, *, per_concept: int, seed: int
) -> tuple[Accuracy, NDArray[np.uint8]]:
    """Generates `per_concept` pictures of every object and style; returns accuracies and the pictures of objects."""
    names = [o.name for o in world.load_objects()]
    prompts = [f"a photo of {world.with_article(name)}" for name in names] * per_concept
    pictures = generate(pipeline, prompts, first_seed=seed)
    right = _logits(judge, pictures)[:, : len(names)].argmax(1).numpy() == np.tile(np.arange(len(names)), per_concept)
    by_object = dict(zip(names, right.reshape(per_concept, -1).mean(0).tolist(), strict=True))

    styles = world.load_styles()
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(names), size=(len(styles), per_concept))
    styled = [
        f"{world.with_article(names[i])} in {s} style" for s, row in zip(styles, chosen, strict=True) for i in row
    ]
    logits = _logits(judge, generate(pipeline, styled, first_seed=seed + 100_000))
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


def write_figures(folder: Path, *, per_concept: int, seed: int = 7) -> dict[str, Any]:
    """Evaluates the model and detectors under `folder`; writes `figures.json` and `contact_sheet.png` there."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "model", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    judge = ResNetForImageClassification.from_pretrained(folder / "detectors" / "classifier").float().eval()
    held_out = dataset.draw(len(world.load_objects()) * 8, seed=dataset.HELD_OUT_SEED)
    drawn = classifier.accuracy(judge, to_tensor(held_out.pictures), held_out.object_labels, held_out.style_labels)
    accuracy, pictures = measure(pipeline, judge, per_concept=per_concept, seed=seed)
    contact_sheet(pictures, folder / "contact_sheet.png")
    figures = {
        "seed": seed,
        "pictures_per_concept": per_concept,
        "sampler": {"scheduler": "DPMSolverMultistepScheduler", "steps": STEPS, "guidance": GUIDANCE},
        "classifier_on_held_out_drawings": {
            "objects": drawn[0],
            "drawn": {"objects": drawn[0], "styles": drawn[1], "pictures": len(held_out.captions)},
            "pictures": len(held_out.captions),
        },
        "generated_objects": {
            "mean": sum(accuracy.by_object.values()) / len(accuracy.by_object),
            "worst": dict(sorted(accuracy.by_object.items(), key=lambda item: item[1])[:10]),
        },
        "generated_styles": accuracy.by_style,
        "objects_in_styled_pictures": accuracy.objects_in_style,
    }
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    logger.info("%s", json.dumps(figures, indent=1))
    return figures


def _logits(judge: ResNetForImageClassification, pictures: NDArray[np.uint8]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([judge(pixel_values=part).logits for part in to_tensor(pictures).split(256)]).clone()
