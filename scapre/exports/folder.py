"""A merged checkpoint as a folder in diffusers' layout.

Guarantees:
    1. Only the bytes of edited tensors change; headers, order and other tensors stay as they are.
    2. Weight files without edited tensors are hard-linked where the file system allows it: base and copy share them,
       so write to neither in place. Everything else is copied.
    3. No other copy of the weights that were edited comes along.
"""

import os
from pathlib import Path

from scapre.checkpoint import CheckpointInfo, SingleFile, inspect_checkpoint
from scapre.checkpoint.folder import DENOISER_STEM, weight_files
from scapre.checkpoint.tensor_files import everything_in, flip_bits
from scapre.edit import Edit
from scapre.errors import CheckpointError
from scapre.exports.base import changed_names, check_place, read_own_base, source_of
from scapre.writing import copy_through, flush, new_folder

WEIGHT_SUFFIXES = frozenset({".safetensors", ".onnx", ".msgpack", ".h5", ".gguf"})
"""Files in which programs look for weights; pickles are refused before."""


def merge(edit: Edit, checkpoint: Path | str | SingleFile, out: Path | str, *, overwrite: bool = False) -> Path:
    """Writes a full copy of the folder `checkpoint` to `out` in which only the edited tensors differ; returns `out`.

    Raises:
        BaseMismatchError: the checkpoint is not the base of the edit.
        CheckpointError: the folder holds its denoiser twice, or `out` exists or cannot be written.
            Nothing is left behind.
    """
    source, target = source_of(checkpoint), Path(out).absolute()
    check_place(source, target, overwrite=overwrite, for_folder=True)
    info = inspect_checkpoint(source)
    check_mergeable(info)
    read_own_base(edit, info)
    with new_folder(target, overwrite=overwrite) as building:
        _copy_tree(info, edit, building)
    return target


def check_mergeable(info: CheckpointInfo) -> None:
    """Checks that nobody would find the weights as they were in a merged folder: as a variant, or as a single file.

    Raises:
        CheckpointError: it is no folder, or one that holds its denoiser twice.
    """
    if info.path.is_file():
        raise CheckpointError(f"expected a folder to merge, found the file {info.path}; export it as a single file")
    denoiser = info.path / info.adapter.denoiser
    own = weight_files(denoiser, DENOISER_STEM)
    for place in (info.path, denoiser):
        if others := [f for f in sorted(place.iterdir()) if f.suffix.lower() in WEIGHT_SUFFIXES and f not in own]:
            raise CheckpointError(
                f"expected one copy of the denoiser's weights, found {others[0].relative_to(info.path)} as well "
                f"({len(others)} in all), which would stay as it is; remove it, or merge a copy without it"
            )


def _copy_tree(info: CheckpointInfo, edit: Edit, building: Path) -> None:
    changed = changed_names(edit)
    rewritten = {info.files[name] for name in changed}
    for original in everything_in(info.path):
        copy = building / original.relative_to(info.path)
        if original.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if original in rewritten:
            copy_through(original, copy)
            own = [name for name in changed if info.files[name] == original]
            flip_bits(copy, {info.stored_names[name]: edit.changes[name] for name in own})
        elif original.suffix in WEIGHT_SUFFIXES:
            _link_or_copy(original.resolve(), copy)
        else:  # configurations are small, and people change them in place
            copy_through(original, copy)
    for folder in sorted((p for p in building.rglob("*") if p.is_dir()), reverse=True):
        flush(folder)
    flush(building)


def _link_or_copy(original: Path, copy: Path) -> None:
    try:
        os.link(original, copy)
    except OSError:  # another device, or a file system without links
        copy_through(original, copy)
