"""A merged checkpoint as a folder in diffusers' layout.

Guarantees:
    1. Only the bytes of edited tensors change; headers, order and other tensors stay as they are.
    2. Weight files that an edit does not change are hard-linked where the file system allows it: base and copy share
       them, so write to neither in place. Everything else is copied.
    3. No other copy of the weights that were edited comes along.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Generator, Iterable
from functools import partial
from pathlib import Path

from scapre.checkpoint import CheckpointInfo, SingleFile, inspect_checkpoint
from scapre.checkpoint.tensor_files import everything_in
from scapre.edit import Edit
from scapre.errors import CheckpointError
from scapre.exports.base import (
    WEIGHT_SUFFIXES,
    changed_names,
    check_place,
    edited_copy,
    refuse_second_copies,
    source_of,
)
from scapre.writing import begun_folder, flush, told_as_unwritable


def merge(edit: Edit, checkpoint: Path | str | SingleFile, out: Path | str, *, overwrite: bool = False) -> Path:
    """Writes the folder `checkpoint` to `out` with only the edited tensors changed; returns `out`.

    Weight files that stay as they are become hard links where the file system allows it: one file by two names, which
    nobody may change in place, its permissions included.

    Raises:
        BaseMismatchError: the checkpoint is not the base of the edit.
        CheckpointError: the folder holds its denoiser twice, or `out` exists or cannot be written.
            Nothing is left behind.
    """
    changed = changed_names(edit) if isinstance(edit, Edit) else ()  # what is none is refused once it is put on
    with _merging(checkpoint, out, overwrite=overwrite, changing=lambda _: changed) as put_on:
        return put_on(edit)


@contextlib.contextmanager
def merging(
    checkpoint: Path | str | SingleFile, out: Path | str, *, overwrite: bool = False, memories: bool = False
) -> Generator[Callable[[Edit], Path]]:
    """Copies the folder `checkpoint` beside the block; yields what puts an edit on the copy, once, and returns `out`.

    What is copied does not depend on the edit, so that an edit of a large model is written sooner:

        with merging(checkpoint, out) as put_on:
            put_on(unlearn(checkpoint, ["tiger"]))

    With `memories` the text encoders' weights are copied at once, instead of the denoiser's; an edit of the others
    can be put on all the same, once they have been copied as well. `out` is there when the block has ended without an
    error; otherwise nothing is left of it.

    Raises:
        BaseMismatchError: the checkpoint is not the base of the edit; raised by what is yielded.
        CheckpointError: the folder holds what is edited twice, `out` exists or cannot be written, the checkpoint
            changed while it was copied, or no edit was put on.
    """

    def changing(info: CheckpointInfo) -> Iterable[str]:
        return info.files.keys() - info.projections.keys() if memories else info.projections

    with _merging(checkpoint, out, overwrite=overwrite, changing=changing) as put_on:
        yield put_on


@contextlib.contextmanager
def _merging(
    checkpoint: Path | str | SingleFile,
    out: Path | str,
    *,
    overwrite: bool,
    changing: Callable[[CheckpointInfo], Iterable[str]],
) -> Generator[Callable[[Edit], Path]]:
    """Does the same, and copies files with weights that are `changing` at once; other files only once an edit asks."""
    source, target = source_of(checkpoint), Path(out).absolute()
    check = partial(check_place, source, target, overwrite=overwrite, for_folder=True)
    check()
    info = inspect_checkpoint(source)
    _refuse_files(info)
    names = [name for name in changing(info) if name in info.files]
    refuse_second_copies(info, {name.partition(".")[0] for name in names})
    with begun_folder(target, check) as building:
        with told_as_unwritable(target):
            copies = _lay_out(info, building, {info.files[name] for name in names})
        with edited_copy(info, building, target, copies) as put_on:
            yield put_on
        with told_as_unwritable(target):
            for folder in sorted((p for p in building.rglob("*") if p.is_dir()), reverse=True):
                flush(folder)
            flush(building)


def check_mergeable(info: CheckpointInfo, *, memories: bool = False) -> None:
    """Checks that nobody would find the weights as they were in a merged folder: as a variant, or as a single file.

    Args:
        info: the checkpoint.
        memories: whether the text encoders' weights change, instead of the denoiser's.

    Raises:
        CheckpointError: it is no folder, or one that holds the weights that change twice.
    """
    _refuse_files(info)
    refuse_second_copies(info, info.adapter.text_encoders if memories else [info.adapter.denoiser])


def _refuse_files(info: CheckpointInfo) -> None:
    if info.path.is_file():
        raise CheckpointError(f"expected a folder to merge, found the file {info.path}; export it as a single file")


def _lay_out(info: CheckpointInfo, building: Path, changing: Collection[Path]) -> dict[Path, Path]:
    """Makes folders and links; returns which files are to be copied from where."""
    copies = {}
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
