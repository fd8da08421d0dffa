"""Drawn pictures with captions and labels, as arrays on disk."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.reference import world

TRAIN_SEED = 20_260_101
HELD_OUT_SEED = 20_260_102


@dataclass(frozen=True)
class Drawings:
    """Pictures `[n, side, side, 3]` as bytes, with what is true of each."""

    pictures: NDArray[np.uint8]
    object_labels: NDArray[np.int64]
    style_labels: NDArray[np.int64]
    """0 is `natural`; style k of `world.load_styles()` is k + 1."""
    captions: list[str]


def draw(count: int, *, seed: int) -> Drawings:
    """Draws `count` pictures, objects in turn so that each is equally frequent."""
    rng = np.random.default_rng(seed)
    styles = (world.NATURAL, *world.load_styles())
    objects = len(world.load_objects())
    side = world.PICTURE_PIXELS
    pictures = np.empty((count, side, side, 3), dtype=np.uint8)
    object_labels = np.arange(count, dtype=np.int64) % objects
    style_labels = np.empty(count, dtype=np.int64)
    captions = []
    for i in range(count):
        scene = world.sample_scene(rng, object_index=int(object_labels[i]))
        pictures[i] = np.asarray(world.draw_scene(scene))
        style_labels[i] = styles.index(scene.style)
        captions.append(world.caption_scene(scene, rng))
    return Drawings(pictures, object_labels, style_labels, captions)


def save(drawings: Drawings, path: Path) -> None:
    """Writes drawings as one uncompressed archive."""
    np.savez(
        path,
        pictures=drawings.pictures,
        object_labels=drawings.object_labels,
        style_labels=drawings.style_labels,
        captions=np.array(drawings.captions),
    )


def load(path: Path) -> Drawings:
    """Reads what `save` wrote."""
    with np.load(path) as archive:
        return Drawings(
            archive["pictures"], archive["object_labels"], archive["style_labels"], archive["captions"].tolist()
        )
