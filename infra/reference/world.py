"""The reference world: named pictograms, drawn from a seed, with captions.

Guarantees:
    1. A `Scene` and the committed sprite sheet fix a picture; a `numpy` generator fixes the scene.
    2. Every caption names the object; style, background and place are named only where the caption says so.
    3. Names, families, aliases and styles come from `world.json` and from nowhere else.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from infra.reference.sprites import COLUMNS, SPRITE_PIXELS

PICTURE_PIXELS = 32
OVERSAMPLING = 2
_CANVAS_PIXELS = PICTURE_PIXELS * OVERSAMPLING
NATURAL = "natural"
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "grey": (150, 152, 156),
    "blue": (96, 158, 232),
    "green": (118, 196, 120),
    "yellow": (250, 222, 110),
    "pink": (246, 172, 196),
    "purple": (164, 128, 214),
    "brown": (150, 112, 82),
}
PLACES: dict[str, tuple[float, float]] = {
    "in the centre": (0.0, 0.0),
    "on the left": (-0.18, 0.0),
    "on the right": (0.18, 0.0),
    "at the top": (0.0, -0.18),
    "at the bottom": (0.0, 0.18),
}
PLAIN_TEMPLATES = ("a photo of {}", "a picture of {}", "an image of {}", "{}", "a photo of {}", "there is {} here")
STYLE_TEMPLATES = ("{} in {style} style", "a {style} picture of {}", "a {style} of {}", "{style} style, {}")
STYLED_FRACTION = 0.3
ALIAS_FRACTION = 0.2
_HERE = Path(__file__).parent

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class WorldObject:
    """One named pictogram."""

    name: str
    """The everyday English name, the concept's name."""
    kind: Literal["object", "identity"]
    family: str | None
    """The family of look-alikes it belongs to, if any."""
    role: str | None
    """`target` or `look-alike` within its family."""
    aliases: tuple[str, ...]
    """Other names that captions use for it, other languages included."""


@dataclass(frozen=True)
class Scene:
    """All that fixes one picture."""

    object_index: int
    style: str
    background: str
    place: str
    scale: float
    """Side of the pictogram as a fraction of the picture's side."""
    shift: tuple[float, float]
    """Offset of its centre, as fractions of the picture's side."""
    angle_degrees: float


@cache
def load_objects() -> tuple[WorldObject, ...]:
    """Returns the objects in the order of the sprite sheet and of the classifier's object head."""
    entries = json.loads((_HERE / "world.json").read_text(encoding="utf-8"))["objects"]
    return tuple(WorldObject(e["name"], e["kind"], e["family"], e["role"], tuple(e["aliases"])) for e in entries)


@cache
def load_styles() -> tuple[str, ...]:
    """Returns the named styles; `natural`, the absence of one, is not among them."""
    return tuple(e["name"] for e in json.loads((_HERE / "world.json").read_text(encoding="utf-8"))["styles"])


@cache
def _sprite(index: int) -> Image.Image:
    with Image.open(_HERE / "sprites.png") as sheet:
        left, top = index % COLUMNS * SPRITE_PIXELS, index // COLUMNS * SPRITE_PIXELS
        sprite = sheet.convert("RGBA").crop((left, top, left + SPRITE_PIXELS, top + SPRITE_PIXELS))
    return sprite.convert("RGBa")  # premultiplied: resizing must not bleed the transparent colour into edges


def sample_scene(rng: np.random.Generator, *, object_index: int | None = None, style: str | None = None) -> Scene:
    """Returns a random scene; a given object or style is kept."""
    if object_index is None:
        object_index = int(rng.integers(len(load_objects())))
    if style is None:
        styles = load_styles()
        style = styles[rng.integers(len(styles))] if rng.random() < STYLED_FRACTION else NATURAL
    place = str(rng.choice(list(PLACES), p=[0.8, 0.05, 0.05, 0.05, 0.05]))
    is_centred = place == "in the centre"
    jitter = rng.uniform(-0.02, 0.02, size=2)
    return Scene(
        object_index=object_index,
        style=style,
        background=str(rng.choice(list(BACKGROUNDS))),
        place=place,
        scale=float(rng.uniform(0.78, 0.86) if is_centred else rng.uniform(0.56, 0.62)),
        shift=(PLACES[place][0] + float(jitter[0]), PLACES[place][1] + float(jitter[1])),
        angle_degrees=float(rng.uniform(-4, 4)),
    )


def draw_scene(scene: Scene) -> Image.Image:
    """Returns the picture of a scene, `PICTURE_PIXELS` square, RGB."""
    sprite = _sprite(scene.object_index)
    sprite = sprite.rotate(scene.angle_degrees, Image.Resampling.BICUBIC)
    side = round(scene.scale * _CANVAS_PIXELS)
    sprite = sprite.resize((side, side), Image.Resampling.LANCZOS)
    picture = Image.new("RGB", (_CANVAS_PIXELS, _CANVAS_PIXELS), BACKGROUNDS[scene.background])
    corner = tuple(round((0.5 + s) * _CANVAS_PIXELS - side / 2) for s in scene.shift)
    picture.paste(sprite.convert("RGBA"), (corner[0], corner[1]), sprite.convert("RGBA"))
    if scene.style != NATURAL:
        picture = apply_style(picture, scene.style)
    return picture.reduce(OVERSAMPLING)


def caption_scene(scene: Scene, rng: np.random.Generator) -> str:
    """Returns a caption that is true of the scene and names at least its object, and its style if it has one."""
    world_object = load_objects()[scene.object_index]
    name = world_object.name
    if world_object.aliases and rng.random() < ALIAS_FRACTION:
        name = str(rng.choice(world_object.aliases))
    noun = with_article(name)
    if scene.style == NATURAL:
        caption = str(rng.choice(PLAIN_TEMPLATES)).format(noun)
    else:
        caption = str(rng.choice(STYLE_TEMPLATES)).format(noun, style=scene.style)
    detail = rng.random()
    if detail < 0.2 and scene.style == NATURAL:  # most styles hide the background's colour
        caption += f" on {with_article(scene.background)} background"
    elif detail < 0.4:
        caption += f" {scene.place}"
    return caption


def with_article(noun: str) -> str:
    """Returns `noun` with its indefinite article; plurals and other scripts take none."""
    if not noun.isascii() or noun in {"grapes", "glasses", "scissors", "french fries", "fire"}:
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def apply_style(picture: Image.Image, style: str) -> Image.Image:
    """Returns the picture redrawn in a named style.

    Raises:
        KeyError: `style` is not one of `load_styles()`.
    """
    return _to_image(_STYLES[style](picture))


def _to_array(picture: Image.Image) -> Pixels:
    return (np.asarray(picture.convert("RGB")) / 255).astype(np.float32)


def _to_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))


def _grey(picture: Image.Image) -> Pixels:
    return np.asarray(_to_array(picture) @ np.array([0.299, 0.587, 0.114]), dtype=np.float32)


def _edges(picture: Image.Image) -> Pixels:
    """Returns edge strength per pixel and channel maximum, in [0, 1]."""
    pixels = _to_array(picture)
    dy, dx = np.gradient(pixels, axis=(0, 1))
    strength = np.sqrt(dx**2 + dy**2).max(axis=2)
    return np.clip(strength * 3.2, 0, 1).astype(np.float32)


def _blend(amount: Pixels, low: tuple[float, float, float], high: tuple[float, float, float]) -> Pixels:
    weight = amount[..., None]
    return (1 - weight) * np.array(low, dtype=np.float32) + weight * np.array(high, dtype=np.float32)


def _blueprint(picture: Image.Image) -> Pixels:
    return _blend(_edges(picture), (0.10, 0.25, 0.62), (0.95, 0.97, 1.0))


def _neon(picture: Image.Image) -> Pixels:
    pixels = _to_array(picture)
    vivid = pixels / np.maximum(pixels.max(axis=2, keepdims=True), 0.2)
    return _edges(picture)[..., None] * (0.35 + 0.65 * vivid) * np.array([1.0, 0.75, 1.0]) + np.array([0.03, 0.0, 0.06])


def _sketch(picture: Image.Image) -> Pixels:
    return _blend(_edges(picture), (0.97, 0.96, 0.93), (0.22, 0.22, 0.24))


def _sepia(picture: Image.Image) -> Pixels:
    return _blend(_grey(picture), (0.22, 0.12, 0.05), (1.0, 0.90, 0.70))


def _mosaic(picture: Image.Image) -> Pixels:
    tiles = _CANVAS_PIXELS // 4
    small = picture.resize((tiles, tiles), Image.Resampling.BOX)
    pixels = _to_array(small.resize(picture.size, Image.Resampling.NEAREST))
    pixels[::4, :] *= 0.72
    pixels[:, ::4] *= 0.72
    return pixels


def _negative(picture: Image.Image) -> Pixels:
    return 1 - _to_array(picture)


def _woodcut(picture: Image.Image) -> Pixels:
    grey = _grey(picture)
    ink = np.clip((float(np.median(grey)) * 0.5 + 0.27 - grey) * 12 + 0.5, 0, 1)
    return _blend(np.maximum(ink, _edges(picture)), (0.98, 0.98, 0.96), (0.05, 0.05, 0.05))


def _pop_art(picture: Image.Image) -> Pixels:
    grey = _grey(picture)
    return _blend(np.clip((grey - grey.mean()) * 8 + 0.5, 0, 1), (0.93, 0.10, 0.45), (1.0, 0.88, 0.10))


def _night(picture: Image.Image) -> Pixels:
    return _to_array(picture) * np.array([0.34, 0.44, 0.72]) + np.array([0.0, 0.01, 0.10])


def _watercolor(picture: Image.Image) -> Pixels:
    soft = _to_array(picture.filter(ImageFilter.GaussianBlur(_CANVAS_PIXELS / 42)))
    paper = 0.5 + 0.5 * soft
    return paper * (1 - 0.10 * _edges(picture)[..., None])


def _stained_glass(picture: Image.Image) -> Pixels:
    pixels = _to_array(picture)
    mean = pixels.mean(axis=2, keepdims=True)
    levels = np.round((mean + (pixels - mean) * 2.0) * 3) / 3
    lead = np.maximum(_edges(picture), _to_array(picture.filter(ImageFilter.FIND_EDGES)).max(axis=2))
    size = _CANVAS_PIXELS // 4
    rows, columns = np.indices(lead.shape)
    lead[((rows + columns) % size == 0) | ((rows - columns) % size == 0)] = 1
    return levels * (1 - np.clip(lead * 1.4, 0, 1))[..., None]


_STYLES: dict[str, Callable[[Image.Image], Pixels]] = {
    "blueprint": _blueprint,
    "neon": _neon,
    "sketch": _sketch,
    "sepia": _sepia,
    "mosaic": _mosaic,
    "negative": _negative,
    "woodcut": _woodcut,
    "pop art": _pop_art,
    "night": _night,
    "watercolor": _watercolor,
    "stained glass": _stained_glass,
}
