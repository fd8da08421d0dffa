"""Bakes the sprite sheet of the reference world from an installed emoji font (build time only).

The font is Noto Color Emoji (SIL Open Font License 1.1; Debian package `fonts-noto-color-emoji`). The sheet is
committed so that drawing needs no font: `python -m infra.reference.sprites --font PATH` rewrites `sprites.png`.
"""

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SPRITE_PIXELS = 80
COLUMNS = 16
_BITMAP_PIXELS = 109  # the only size at which this bitmap font renders
_HERE = Path(__file__).parent


def render_glyph(glyph: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Returns one glyph as an RGBA square of `SPRITE_PIXELS`, cropped to its ink and centred."""
    canvas = Image.new("RGBA", (_BITMAP_PIXELS * 2, _BITMAP_PIXELS * 2))
    ImageDraw.Draw(canvas).text((20, 20), glyph, font=font, embedded_color=True)
    ink = canvas.getbbox()
    if ink is None:
        raise ValueError(f"the font has no glyph for {glyph!r}; install fonts-noto-color-emoji 2.042 or newer")
    cropped = canvas.crop(ink)
    side = max(cropped.size)
    square = Image.new("RGBA", (side, side))
    square.paste(cropped, ((side - cropped.width) // 2, (side - cropped.height) // 2))
    return square.resize((SPRITE_PIXELS, SPRITE_PIXELS), Image.Resampling.LANCZOS)


def bake_sheet(font_path: Path, glyphs: list[str]) -> Image.Image:
    """Returns all glyphs in reading order, `COLUMNS` to a row."""
    font = ImageFont.truetype(str(font_path), _BITMAP_PIXELS)
    rows = -(-len(glyphs) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SPRITE_PIXELS, rows * SPRITE_PIXELS))
    for index, glyph in enumerate(glyphs):
        sheet.paste(render_glyph(glyph, font), (index % COLUMNS * SPRITE_PIXELS, index // COLUMNS * SPRITE_PIXELS))
    return sheet


def main() -> None:
    """Command line: writes `sprites.png` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--font", type=Path, default=Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"))
    arguments = parser.parse_args()
    world = json.loads((_HERE / "world.json").read_text(encoding="utf-8"))
    sheet = bake_sheet(arguments.font, [entry["glyph"] for entry in world["objects"]])
    sheet.save(_HERE / "sprites.png", optimize=True)


if __name__ == "__main__":
    main()
