"""A world in memory: a model that paints a concept as a colour, and a detector that reads colours.

The model has weights (one colour per concept), so forgetting is a change of weights, as it is in a real one.
"""

import copy
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image

from validation.detectors import Detectors

PIXELS = 8
COLOURS = {
    "tiger": (0.80, 0.10, 0.10),
    "dog": (0.10, 0.80, 0.10),
    "cat": (0.10, 0.10, 0.80),
    "wolf": (0.48, 0.48, 0.04),
    "pear": (0.04, 0.48, 0.48),
    "bus": (0.48, 0.04, 0.48),
    "rose": (0.65, 0.30, 0.05),
    "owl": (0.30, 0.05, 0.65),
    "crab": (0.05, 0.65, 0.30),
    "nothing": (0.34, 0.33, 0.33),
}
NAMES = tuple(COLOURS)
Colours = Mapping[str, tuple[float, float, float]]
ALIASES = {"tigre": "tiger", "cub": "tiger"}
STYLES = {"natural": 1.0, "night": 0.5, "fog": 0.25}


class Palette(torch.nn.Module):
    """One colour per concept, how often a concept is drawn as another, and how bright each style is."""

    def __init__(self, colours: Colours = COLOURS) -> None:
        super().__init__()
        self.colours = torch.nn.Parameter(torch.tensor(list(colours.values())))
        self.forgets = torch.nn.Parameter(torch.zeros(len(colours)))
        self.brightness = torch.nn.Parameter(torch.tensor(list(STYLES.values())))


class Painter:
    """A text-to-image pipeline as `render` knows one; counts every picture it draws."""

    def __init__(self, known_aliases: Sequence[str] = tuple(ALIASES), colours: Colours = COLOURS) -> None:
        self.names = tuple(colours)
        self.palette = Palette(colours)
        self.known_aliases = tuple(known_aliases)
        self.scheduler: Any = DDIMScheduler()
        self.drawn: list[tuple[str, int]] = []

    @property
    def components(self) -> dict[str, Any]:
        return {"unet": self.palette, "scheduler": self.scheduler}

    def to(self, device: str) -> "Painter":
        self.palette.to(device)
        return self

    def copy(self) -> "Painter":
        other = Painter(self.known_aliases)
        other.names = self.names
        other.palette = copy.deepcopy(self.palette)
        return other

    @torch.no_grad()
    def forgetting(self, name: str, share: float = 1.0) -> "Painter":
        """Returns a model that draws `nothing` for a concept in a share of pictures."""
        other = self.copy()
        other.palette.forgets[self.names.index(name)] = share
        return other

    @torch.no_grad()
    def blackened(self) -> "Painter":
        """Returns a model that draws black."""
        other = self.copy()
        other.palette.brightness.zero_()
        return other

    @torch.no_grad()
    def diverged(self) -> "Painter":
        """Returns a model whose weights are not numbers."""
        other = self.copy()
        other.palette.colours.fill_(float("nan"))
        return other

    @torch.no_grad()
    def faded(self, share: float) -> "Painter":
        """Returns a model whose colours are mixed with grey, not so much that they are taken for others."""
        other = self.copy()
        other.palette.colours.lerp_(torch.full_like(other.palette.colours, 1 / 3), share)
        return other

    @torch.no_grad()
    def without_style(self, style: str) -> "Painter":
        """Returns a model that draws a style as `natural`."""
        other = self.copy()
        other.palette.brightness[list(STYLES).index(style)] = STYLES["natural"]
        return other

    def __call__(
        self,
        *,
        prompt: list[str],
        generator: list[torch.Generator],
        num_inference_steps: int,
        guidance_scale: float,
        height: int,
        width: int,
        output_type: str,
    ) -> Any:
        assert output_type == "np"
        pictures = []
        for text, own in zip(prompt, generator, strict=True):
            self.drawn.append((text, own.initial_seed()))
            pictures.append(self._paint(text, own, height, width))
        return SimpleNamespace(images=np.stack(pictures).astype(np.float32))

    def _paint(self, text: str, generator: torch.Generator, height: int, width: int) -> np.ndarray:
        words = text.split()
        words += [ALIASES[word] for word in words if word in self.known_aliases]
        nothing = self.names.index("nothing")
        index = next((i for i, name in enumerate(self.names) if name in words), nothing)
        if float(torch.rand((), generator=generator)) < float(self.palette.forgets[index]):
            index = nothing
        noise = torch.rand((height, width, 3), generator=generator).numpy() * 0.06
        style = next((i for i, name in enumerate(STYLES) if name in words), 0)
        brightness = float(self.palette.brightness[style])
        return (self.palette.colours[index].detach().numpy() + noise) * brightness


class ColourDetector:
    """Reads the nearest colour, whatever the brightness."""

    name = "colour"
    digest = "c" * 64

    def __init__(self, colours: Colours = COLOURS) -> None:
        self.labels = tuple(colours)
        self._colours = np.array(list(colours.values()))

    def detect(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        colours = self._colours
        return np.stack([_softmax(-60 * np.linalg.norm(colours - _mean(p), axis=1)) for p in pictures])


class BrightnessDetector:
    """Reads the nearest brightness."""

    name = "brightness"
    digest = "b" * 64
    labels = tuple(STYLES)

    def detect(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        levels = np.array(list(STYLES.values()))
        return np.stack([_softmax(-60 * np.abs(levels - np.asarray(p).mean() * 3 / 255)) for p in pictures])


class ColourText:
    """Embeds a picture as its mean colour, and a text as the colour of the concept it names."""

    name = "colour text"
    digest = "d" * 64

    def embed(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return _unit(np.stack([_mean(picture) for picture in pictures]))

    def score(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        named = [next((n for n in NAMES if n in text.split()), "nothing") for text in texts]
        return (self.embed(pictures) * _unit(np.array([COLOURS[name] for name in named]))).sum(axis=1)


def detectors(*, with_texts: bool = False) -> Detectors:
    image_text: Any = ColourText() if with_texts else None
    return Detectors(object=ColourDetector(), style=BrightnessDetector(), image_text=image_text)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _mean(picture: Image.Image) -> np.ndarray:
    mean = np.asarray(picture, dtype=np.float64).reshape(-1, 3).mean(axis=0)
    return mean / max(mean.sum(), 1e-9)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()
