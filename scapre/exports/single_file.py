"""An edited checkpoint as one file, in the original layout of Stable Diffusion 1.x, 2.x and XL.

From a single file: the same file with only the edited tensors' bytes changed. From a folder: its weights under the
original names, number by number as they are; types are kept. A folder of Stable Diffusion 2.x holds one layer of the
text encoder less than the original file, which no program reads.
"""

import contextlib
import json
import re
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import CLIPTextConfig

from scapre.checkpoint import CheckpointInfo, SingleFile, inspect_checkpoint
from scapre.checkpoint.folder import DENOISER_STEM, ENCODER_STEM, weight_files
from scapre.checkpoint.ldm_layout import (
    UNET,
    VAE,
    Layout,
    check_layout,
    layout_of,
    stored_text_name,
    stored_unet_name,
    stored_vae_name,
)
from scapre.checkpoint.single_file import ENCODERS_KEY, UNSAID
from scapre.checkpoint.tensor_files import (
    METADATA_KEY,
    NewTensor,
    Piece,
    StoredTensor,
    read_header,
    write_tensors,
)
from scapre.concepts import canonical_json
from scapre.edit import Edit
from scapre.errors import CheckpointError, UnsupportedArchitectureError
from scapre.exports.base import changed_names, check_place, edited_copy, read_own_base, source_of
from scapre.text import plain_name
from scapre.writing import begun_file, new_file

VAE_CLASS = "AutoencoderKL"
_LINEAR = "use_linear_projection"
Held = dict[str, tuple[Path, StoredTensor]]
"""Tensors of one component, by name: their file and their place in it."""


def export_single_file(
    edit: Edit, checkpoint: Path | str | SingleFile, out: Path | str, *, overwrite: bool = False
) -> Path:
    """Writes `checkpoint`, a single file or a folder, with the edit in it to the single file `out`; returns `out`.

    Raises:
        BaseMismatchError: the checkpoint is not the base of the edit.
        UnsupportedArchitectureError: its family has no single-file layout here.
        CheckpointError: `out` exists, or cannot be written.
    """
    source, target = source_of(checkpoint), Path(out).absolute()
    if source.is_file():
        with rewriting(source, target, overwrite=overwrite) as put_on:
            return put_on(edit)
    info = _inspected(source, target, overwrite=overwrite)
    read_own_base(edit, info)
    with new_file(target, overwrite=overwrite) as building:
        layout = layout_of(info.pipeline_class, uses_linear_projection=bool(_config(info, "unet").get(_LINEAR)))
        tensors = {**_unet(info, edit), **_vae(info), **_encoders(info, layout, edit)}
        write_tensors(building, tensors, {METADATA_KEY: canonical_json(_origin(info, edit, layout))})
    return target


@contextlib.contextmanager
def rewriting(
    checkpoint: Path | str | SingleFile, out: Path | str, *, overwrite: bool = False
) -> Generator[Callable[[Edit], Path]]:
    """As `scapre.merging`, for a single file: copies it beside the block, and yields what puts the edit on the copy.

    Raises:
        BaseMismatchError, UnsupportedArchitectureError, CheckpointError: as `export_single_file`, and `merging`.
    """
    source, target = source_of(checkpoint), Path(out).absolute()
    if source.is_dir():
        raise CheckpointError(
            f"expected a single file, found the folder {source}; copy it by scapre.merging, or make a single file of "
            "it by scapre.export_single_file"
        )
    info = _inspected(source, target, overwrite=overwrite)
    with (
        begun_file(target, partial(check_place, source, target, overwrite=overwrite, for_folder=False)) as building,
        edited_copy(info, building, target, {building: source}) as put_on,
    ):
        yield put_on


def _inspected(source: Path, target: Path, *, overwrite: bool) -> CheckpointInfo:
    check_place(source, target, overwrite=overwrite, for_folder=False)
    info = inspect_checkpoint(source)
    check_layout(info.pipeline_class)
    return info


def _unet(info: CheckpointInfo, edit: Edit) -> dict[str, NewTensor]:
    held, blocks = _held(info.path / "unet", DENOISER_STEM), _config(info, "unet").get("layers_per_block")
    if not isinstance(blocks, int):
        raise UnsupportedArchitectureError(
            f"expected a UNet with one number as layers_per_block, found {blocks!r}; export a folder instead"
        )
    attended = frozenset(int(found[1]) for name in held if (found := re.match(r"up_blocks\.(\d+)\.attentions", name)))
    changes = {name.removeprefix("unet."): edit.changes[name] for name in changed_names(edit)}
    return {
        UNET + stored_unet_name(name, blocks, attended): NewTensor(
            entry.shape, (Piece(file, entry, changes.get(name)),)
        )
        for name, (file, entry) in held.items()
    }


def _vae(info: CheckpointInfo) -> dict[str, NewTensor]:
    if (kind := _config(info, "vae").get("_class_name")) != VAE_CLASS:
        raise UnsupportedArchitectureError(
            f"expected {VAE_CLASS} as vae, found {kind}, which has no place in a single file; export a folder instead"
        )
    held = _held(info.path / "vae", DENOISER_STEM)
    levels = len({found[1] for name in held if (found := re.match(r"decoder\.up_blocks\.(\d+)\.", name))})
    named = {VAE + stored_vae_name(name, levels): (file, entry) for name, (file, entry) in held.items()}
    # the original VAE's attention is made of 1 × 1 convolutions
    ones = {name: (1, 1) if ".attn_" in name and len(entry.shape) == 2 else () for name, (_, entry) in named.items()}
    return {
        name: NewTensor((*entry.shape, *ones[name]), (Piece(file, entry),)) for name, (file, entry) in named.items()
    }


def _origin(info: CheckpointInfo, edit: Edit, layout: Layout) -> dict[str, Any]:
    parts = [encoder.component for encoder in layout.encoders]
    configs = {part: CLIPTextConfig.from_dict(_config(info, part)) for part in parts}
    return {
        "base_digest": edit.base_digest,
        "edit_digest": edit.digest,
        ENCODERS_KEY: {part: {name: getattr(configs[part], name) for name in UNSAID} for part in parts},
    }


def _config(info: CheckpointInfo, component: str) -> dict[str, Any]:
    return json.loads((info.path / component / "config.json").read_text(encoding="utf-8"))


def _held(folder: Path, stem: str) -> Held:
    return {name: (file, entry) for file in weight_files(folder, stem) for name, entry in read_header(file).items()}


def _encoders(info: CheckpointInfo, layout: Layout, edit: Edit) -> dict[str, NewTensor]:
    joined: dict[str, dict[str, Piece]] = {}
    changes = {name: edit.changes[name] for name in changed_names(edit)}
    for encoder in layout.encoders:
        for name, place in _held(info.path / encoder.component, ENCODER_STEM).items():
            if not name.endswith("position_ids"):
                plain = plain_name(name)
                piece = Piece(*place, changes.get(f"{encoder.component}.{plain}"))
                joined.setdefault(stored_text_name(plain, encoder), {})[plain] = piece
    return {stored: _stacked(parts) for stored, parts in joined.items()}


def _stacked(parts: Mapping[str, Piece]) -> NewTensor:
    """Returns one tensor as it is, OpenCLIP's transposed projection, or q, k and v one below the other."""
    order = sorted(parts, key=lambda plain: [part not in plain for part in ("q_proj", "k_proj", "v_proj")])
    pieces = tuple(parts[plain] for plain in order)
    if len({piece.stored.dtype for piece in pieces}) > 1:
        raise CheckpointError(f"expected {', '.join(order)} in one type, found several; convert them to one")
    shape = pieces[0].stored.shape
    if order[0] == "text_projection.weight":
        return NewTensor(shape[::-1], pieces, is_transposed=True)
    return NewTensor((sum(piece.stored.shape[0] for piece in pieces), *shape[1:]), pieces)
