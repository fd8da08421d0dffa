"""Stage `classifier`: one network, two heads' worth of labels (objects, then styles), a standard transformers class."""

import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

from infra.reference import world
from infra.reference.training import dataset
from infra.reference.training.autoencoder import to_tensor
from infra.reference.training.contrastive import augment
from infra.reference.training.schedule import set_rate

logger = logging.getLogger(__name__)


def label_names() -> list[str]:
    """Returns the labels: `object: …` for every object, then `style: …` for `natural` and every style."""
    objects = [f"object: {o.name}" for o in world.load_objects()]
    return objects + [f"style: {s}" for s in (world.NATURAL, *world.load_styles())]


def build() -> ResNetForImageClassification:
    """Returns an untrained classifier; a softmax is taken within each head's labels."""
    names = label_names()
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[48, 96, 160, 224],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
    )


def accuracy(
    model: ResNetForImageClassification, pictures: torch.Tensor, object_labels: np.ndarray, style_labels: np.ndarray
) -> tuple[float, float]:
    """Returns top-1 accuracy of the object head and of the style head; pictures are in [-1, 1]."""
    objects = len(world.load_objects())
    with torch.inference_mode():
        logits = torch.cat([model(pixel_values=part).logits for part in pictures.split(256)])
    return (
        float((logits[:, :objects].argmax(1) == torch.from_numpy(object_labels)).float().mean()),
        float((logits[:, objects:].argmax(1) == torch.from_numpy(style_labels)).float().mean()),
    )


def train(
    drawings: dataset.Drawings, folder: Path, *, seconds: float, batch: int = 64, peak_rate: float = 2e-3, seed: int = 3
) -> ResNetForImageClassification:
    """Trains for a span of time and saves model and image processor."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    objects = len(world.load_objects())
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=0.02)
    started, step, spent = time.monotonic(), 0, 0.0
    while spent < seconds:
        spent = time.monotonic() - started
        set_rate(optimizer, peak=peak_rate, step=step, warm_up=100, remaining=1 - min(spent / seconds, 1.0))
        chosen = rng.integers(len(drawings.pictures), size=batch)
        logits = model(pixel_values=augment(to_tensor(drawings.pictures[chosen]), generator)).logits
        loss = functional.cross_entropy(
            logits[:, :objects], torch.from_numpy(drawings.object_labels[chosen])
        ) + functional.cross_entropy(logits[:, objects:], torch.from_numpy(drawings.style_labels[chosen]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if step % 100 == 0:
            logger.info("step %d  %.0f s  loss %.3f", step, spent, float(loss))
    model.eval().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(
        folder
    )
    return model
