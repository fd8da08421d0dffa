"""An edited checkpoint as one file, in the original layout of Stable Diffusion 1.x, 2.x and XL.

From a single file: the same file with only the edited tensors' bytes changed. From a folder: its weights under the
original names, number by number as they are; types are kept. A folder of Stable Diffusion 2.x holds one layer of the
text encoder less than the original file, which no program reads.
"""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from scapre.checkpoint import CheckpointInfo
from scapre.checkpoint.folder import DENOISER_STEM, ENCODER_STEM, weight_files
from scapre.checkpoint.ldm_layout import (
    AVERAGED,
    UNET,
    VAE,
    Layout,
    StoredEncoder,
    layout_of,
    stored_text_name,
    stored_unet_name,
    stored_vae_name,
)
from scapre.checkpoint.tensor_files import NewTensor, Piece, StoredTensor, flip_bits, read_header, write_tensors
from scapre.concepts import canonical_json
from scapre.edit import METADATA_KEY, Edit
from scapre.errors import CheckpointError
from scapre.exports.base import changed_names, check_apart, read_own_base
from scapre.exports.writing import new_file, refuse_existing
from scapre.text import plain_name

Held = dict[str, tuple[Path, StoredTensor]]
"""Tensors of one component, by name: their file and their place in it."""


def export_single_file(edit: Edit, checkpoint: Path | str, out: Path | str, *, overwrite: bool = False) -> Path:
    """Writes `checkpoint`, a single file or a folder, with the edit in it to the single file `out`; returns `out`.

    Raises:
        BaseMismatchError: the checkpoint is not the base of the edit.
        UnsupportedArchitectureError: its family has no single-file layout here.
        CheckpointError: `out` exists, or cannot be written, or the file holds a second copy of the weights.
    """
    source, target = Path(checkpoint).resolve(), Path(out).absolute()
    check_apart(source, target)
    refuse_existing(target, overwrite=overwrite)
    info, _ = read_own_base(edit, source)
    with new_file(target, overwrite=overwrite) as building:
        if source.is_file():
            _copy_edited(info, edit, building)
        else:
            origin = {"base_digest": edit.base_digest, "edit_digest": edit.digest}
            write_tensors(building, _converted(info, edit), {METADATA_KEY: canonical_json(origin)})
    return target


def _copy_edited(info: CheckpointInfo, edit: Edit, building: Path) -> None:
    if averaged := [name for name in read_header(info.path) if name.startswith(AVERAGED)]:
        raise CheckpointError(
            f"{info.path}: found {len(averaged)} tensors {AVERAGED}*, a second copy of the weights that an edit does "
            "not reach; start from a file without it"
        )
    shutil.copyfile(info.path, building)
    flip_bits(building, {info.stored_names[name]: edit.changes[name] for name in changed_names(edit)})


def _converted(info: CheckpointInfo, edit: Edit) -> dict[str, NewTensor]:
    config = json.loads((info.path / "unet" / "config.json").read_text(encoding="utf-8"))
    is_linear = bool(config.get("use_linear_projection"))
    layout: Layout = layout_of(info.pipeline_class, uses_linear_projection=is_linear)
    unet, vae = (_held(info.path / part, DENOISER_STEM) for part in ("unet", "vae"))
    attended = frozenset(int(found[1]) for name in unet if (found := re.match(r"up_blocks\.(\d+)\.attentions", name)))
    levels = len({found[1] for name in vae if (found := re.match(r"decoder\.up_blocks\.(\d+)\.", name))})
    rename_unet = partial(stored_unet_name, blocks=int(config["layers_per_block"]), attended=attended)
    changes = {name.removeprefix("unet."): edit.changes[name] for name in changed_names(edit)}
    tensors = _renamed(unet, lambda name: UNET + rename_unet(name), changes)
    tensors |= {
        name: _as_convolution(tensor) if ".attn_" in name else tensor
        for name, tensor in _renamed(vae, lambda name: VAE + stored_vae_name(name, levels)).items()
    }
    for encoder in layout.encoders:
        tensors |= _encoder(_held(info.path / encoder.component, ENCODER_STEM), encoder)
    return tensors


def _held(folder: Path, stem: str) -> Held:
    return {name: (file, entry) for file in weight_files(folder, stem) for name, entry in read_header(file).items()}


def _renamed(
    held: Held, rename: Callable[[str], str], changes: dict[str, Tensor] | None = None
) -> dict[str, NewTensor]:
    flips = changes or {}
    return {
        rename(name): NewTensor(entry.shape, (Piece(file, entry, flips.get(name)),))
        for name, (file, entry) in held.items()
    }


def _as_convolution(tensor: NewTensor) -> NewTensor:
    """The original VAE's attention is made of 1 × 1 convolutions."""
    return NewTensor((*tensor.shape, 1, 1), tensor.pieces) if len(tensor.shape) == 2 else tensor


def _encoder(held: Held, encoder: StoredEncoder) -> dict[str, NewTensor]:
    joined: dict[str, dict[str, tuple[Path, StoredTensor]]] = {}
    for name, place in held.items():
        plain = plain_name(name)
        if not plain.endswith("position_ids"):
            joined.setdefault(stored_text_name(plain, encoder), {})[plain] = place
    return {stored: _stacked(parts) for stored, parts in joined.items()}


def _stacked(parts: Held) -> NewTensor:
    """Returns one tensor as it is, OpenCLIP's transposed projection, or q, k and v one below the other."""
    order = sorted(parts, key=lambda plain: [part not in plain for part in ("q_proj", "k_proj", "v_proj")])
    pieces = tuple(Piece(*parts[plain]) for plain in order)
    shape = pieces[0].stored.shape
    if order[0] == "text_projection.weight":
        return NewTensor(shape[::-1], pieces, is_transposed=True)
    return NewTensor((sum(piece.stored.shape[0] for piece in pieces), *shape[1:]), pieces)
