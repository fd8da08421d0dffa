"""Which pictures a report shows, and how it carries them.

Guarantees:
    1. Pairs are the same prompt and seed before and after, the first in the plan's order: nobody picked them.
    2. A picture is shown only if its bytes are the measured ones; up to `SMALL_PIXELS` they are carried as they are.
    3. Nothing refers to a file or a server: pictures are data URIs.
"""

import base64
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from PIL import Image

from validation.report.errors import ReportError

PictureReader = Callable[[str], bytes]
"""From a picture's address in the table of measures to the bytes of its PNG file."""

PAIRS_SHOWN = 4
STILL_SHOWN = 8
SMALL_PIXELS = 128
_THUMBNAIL_PIXELS = 256
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Shown:
    """One picture with what the detector said of it."""

    uri: str | None
    """None where the picture is no longer kept."""
    is_small: bool
    alt: str
    label: str
    score: float
    is_hit: bool
    prompt: str
    seed: int


@dataclass(frozen=True)
class Pair:
    """The same prompt and seed, drawn by both models."""

    before: Shown
    after: Shown


def first_pairs(
    measures: pd.DataFrame, concept: str, *, pack: str, read: PictureReader, lost_first: bool = False
) -> list[Pair]:
    """Returns a concept's first pairs of pictures; `lost_first` puts those before the others that lost it."""
    own = measures[(measures["concept"] == concept) & (measures["pack"] == pack)]
    base, candidate = (own[own["model"] == model] for model in ("base", "candidate"))
    pairs = base.merge(candidate, on=["prompt", "seed"], suffixes=("_before", "_after"), sort=False)
    if lost_first:
        is_kept = pairs["is_hit_after"] | ~pairs["is_hit_before"]
        pairs = pairs.assign(is_kept=is_kept).sort_values("is_kept", kind="stable")
    return [
        Pair(_show(row, "Before", "_before", read), _show(row, "After", "_after", read))
        for row in pairs.head(PAIRS_SHOWN).to_dict("records")
    ]


def still_drawn(
    measures: pd.DataFrame, concept: str, *, pack: str, pairs: Sequence[Pair], read: PictureReader
) -> list[Shown]:
    """Returns the candidate's pictures in which a concept was still found, the first that no pair shows already."""
    own = measures[(measures["concept"] == concept) & (measures["pack"] == pack) & (measures["model"] == "candidate")]
    shown = {pair.after.seed for pair in pairs}
    return [
        _show(row, "After", "", read)
        for row in own[own["is_hit"] & ~own["seed"].isin(shown)].head(STILL_SHOWN).to_dict("records")
    ]


def _show(row: dict, when: str, suffix: str, read: PictureReader) -> Shown:
    label, score = str(row[f"top_label{suffix}"]), float(row[f"top_score{suffix}"])
    uri, is_small = _embed(read, address=str(row[f"address{suffix}"]), digest=str(row[f"picture{suffix}"]))
    prompt, seed = str(row["prompt"]), int(row["seed"])
    return Shown(
        uri=uri,
        is_small=is_small,
        alt=f"{when}: “{prompt}”, seed {seed}; the detector sees {label}",
        label=label,
        score=score,
        is_hit=bool(row[f"is_hit{suffix}"]),
        prompt=prompt,
        seed=seed,
    )


def _embed(read: PictureReader, *, address: str, digest: str) -> tuple[str | None, bool]:
    try:
        content = read(address)
    except FileNotFoundError:  # pictures may be deleted sooner than verdicts
        return None, False
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ReportError(
            f"expected the measured picture {digest} at {address}, found {found}; "
            "it was changed after it was measured: judge again"
        )
    with Image.open(io.BytesIO(content)) as picture:
        if max(picture.size) <= SMALL_PIXELS:
            return _data_uri("png", content), True
        small = picture.convert("RGB")
        small.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return _data_uri("jpeg", buffer.getvalue()), False


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
