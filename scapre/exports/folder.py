"""A merged checkpoint as a folder in diffusers' layout.

Guarantees:
    1. Only the bytes of edited tensors change; headers, order and other tensors stay as they are.
    2. Weight files that an edit does not change are hard-linked where the file system allows it: base and copy share
       them, so write to neither in place. Everything else is copied; that of the denoiser in any case.
    3. No other copy of the weights that were edited comes along.
"""

import contextlib
import os
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

from scapre.checkpoint import CheckpointInfo, SingleFile, inspect_checkpoint
from scapre.checkpoint.folder import DENOISER_STEM, weight_files
from scapre.checkpoint.tensor_files import everything_in
from scapre.edit import Edit
from scapre.errors import CheckpointError
from scapre.exports.base import check_place, edited_copy, source_of
from scapre.writing import begun_folder, flush, told_as_unwritable

WEIGHT_SUFFIXES = frozenset({".safetensors", ".onnx", ".msgpack", ".h5", ".gguf"})
"""Files in which programs look for weights; pickles are refused before."""


def merge(edit: Edit, checkpoint: Path | str | SingleFile, out: Path | str, *, overwrite: bool = False) -> Path:
    """Writes a full copy of the folder `checkpoint` to `out` in which only the edited tensors differ; returns `out`.

    Raises:
        BaseMismatchError: the checkpoint is not the base of the edit.
        CheckpointError: the folder holds its denoiser twice, or `out` exists or cannot be written.
            Nothing is left behind.
    """
    with merging(checkpoint, out, overwrite=overwrite) as put_on:
        return put_on(edit)


@contextlib.contextmanager
def merging(
    checkpoint: Path | str | SingleFile, out: Path | str, *, overwrite: bool = False
) -> Generator[Callable[[Edit], Path]]:
    """Copies the folder `checkpoint` beside the block; yields what puts an edit on the copy, once, and returns `out`.

    What is copied does not depend on the edit, so that an edit of a large model is written sooner:

        with merging(checkpoint, out) as put_on:
            put_on(unlearn(checkpoint, ["tiger"]))

    `out` is there when the block has ended without an error; otherwise nothing is left of it.

    Raises:
        BaseMismatchError: the checkpoint is not the base of the edit; raised by what is yielded.
        CheckpointError: the folder holds its denoiser twice, `out` exists or cannot be written, the checkpoint changed
            while it was copied, or no edit was put on.
    """
    source, target = source_of(checkpoint), Path(out).absolute()
    check = partial(check_place, source, target, overwrite=overwrite, for_folder=True)
    check()
    info = inspect_checkpoint(source)
    check_mergeable(info)
    with begun_folder(target, check) as building:
        with told_as_unwritable(target):
            copies = _lay_out(info, building)
        with edited_copy(info, building, target, copies) as put_on:
            yield put_on
        with told_as_unwritable(target):
            for folder in sorted((p for p in building.rglob("*") if p.is_dir()), reverse=True):
                flush(folder)
            flush(building)


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


def _lay_out(info: CheckpointInfo, building: Path) -> dict[Path, Path]:
    """Makes folders and links; returns which files are to be copied from where."""
    changing, copies = {info.files[name] for name in info.projections}, {}
    for original in everything_in(info.path):
        copy = building / original.relative_to(info.path)
        if original.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
            continue
        if not original.is_file():
            raise CheckpointError(
                f"expected files and folders, found {original}, which is neither, or a link that leads nowhere; "
                "remove it, or fetch what it leads to"
            )
        copy.parent.mkdir(parents=True, exist_ok=True)
        # configurations are small, and people change them in place
        if original in changing or original.suffix not in WEIGHT_SUFFIXES or not _link(original.resolve(), copy):
            copies[copy] = original
    return copies


def _link(original: Path, copy: Path) -> bool:
    """Returns whether the file could be linked."""
    try:
        os.link(original, copy)
    except OSError:  # another device, or a file system without links
        return False
    return True
