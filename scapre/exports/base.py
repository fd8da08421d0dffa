"""What every export begins with: the checkpoint is the base of the edit, or nothing happens."""

import contextlib
import os
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from scapre.architectures import BaseWeights
from scapre.checkpoint import CheckpointInfo, SingleFile, read_inspected
from scapre.checkpoint.folder import DENOISER_STEM, ENCODER_STEM, MODEL_INDEX, weight_files
from scapre.checkpoint.tensor_files import flip_bits, read_tensors
from scapre.digests import tensor_digests
from scapre.edit import Edit
from scapre.errors import CheckpointError
from scapre.writing import copy_through, copying, refuse_existing, told_as_unwritable

WEIGHT_FILE = ".safetensors"
WEIGHT_SUFFIXES = frozenset({WEIGHT_FILE, ".onnx", ".msgpack", ".h5", ".gguf"})
"""Files in which programs look for weights; pickles are refused before."""


def source_of(checkpoint: Path | str | SingleFile) -> Path:
    """Returns the real place of a checkpoint; an export needs no tokenizer.

    Raises:
        CheckpointError: it is no place.
    """
    if not isinstance(checkpoint, (str, os.PathLike, SingleFile)):
        raise CheckpointError(
            f"expected a checkpoint on disk, found {type(checkpoint).__name__}; edit.apply puts an edit on a loaded "
            "pipeline, and save_pretrained writes its base, of which an edit is exported"
        )
    return (checkpoint.path if isinstance(checkpoint, SingleFile) else Path(checkpoint)).resolve()


def read_own_base(edit: Edit, info: CheckpointInfo) -> BaseWeights:
    """Returns the weights of an inspected checkpoint that an edit may change.

    Raises:
        BaseMismatchError: it is not the base of the edit; names both digests.
        CheckpointError: the edit does not make of it what the edit says.
    """
    base = read_inspected(info).weights
    edit.check(base)
    return base


@contextlib.contextmanager
def edited_copy(
    info: CheckpointInfo, building: Path, target: Path, copies: Mapping[Path, Path]
) -> Generator[Callable[[Edit], Path]]:
    """Copies files, source by target, beside the block; yields what puts an edit on the copy and returns `target`.

    Raises:
        CheckpointError: nothing was put on.
    """
    edits: list[Edit] = []
    rewritten = set(copies.values())
    with copying(copies) as wait_for_copies:

        def put_on(edit: Edit) -> Path:
            if edits:
                raise CheckpointError(f"expected one edit to put on {target}, found another; compute one edit of all")
            if not isinstance(edit, Edit):
                raise CheckpointError(
                    f"expected an edit to put on {target}, found {type(edit).__name__}; scapre.Edit.load reads one"
                )
            digests = read_own_base(edit, info).tensor_digests  # and the text encoder is let go
            names = changed_names(edit)
            changing = _by_file(info, names)
            if info.path.is_dir():
                refuse_second_copies(info, {name.partition(".")[0] for name in names})
            with told_as_unwritable(target):
                wait_for_copies()
                for original in changing.keys() - rewritten:
                    _unlink(original, building / original.relative_to(info.path))
                _check_copied(info, building, digests, rewritten | changing.keys())
                for original, own in changing.items():
                    changes = {stored: edit.changes[name] for stored, name in own.items()}
                    flip_bits(building / original.relative_to(info.path), changes)
            edits.append(edit)
            return target

        yield put_on
    if not edits:
        raise CheckpointError(f"expected an edit to put on {target}, found none; nothing was written")


def refuse_second_copies(info: CheckpointInfo, components: Iterable[str]) -> None:
    """Checks that a folder holds the weights of these components once.

    Raises:
        CheckpointError: it holds them in another form as well, or as a whole model in one file.
    """
    for component in sorted(components):
        is_denoiser, part = component == info.adapter.denoiser, info.path / component
        what, stem = ("denoiser", DENOISER_STEM) if is_denoiser else ("text encoder", ENCODER_STEM)
        own = weight_files(part, stem)
        for place in (info.path, part):
            if others := [f for f in sorted(place.iterdir()) if f.suffix.lower() in WEIGHT_SUFFIXES and f not in own]:
                raise CheckpointError(
                    f"expected one copy of the {what}'s weights, found {others[0].relative_to(info.path)} as well "
                    f"({len(others)} in all), which would stay as it is; remove it, or merge a copy without it"
                )


def _unlink(original: Path, copy: Path) -> None:
    """Makes of a file that shares its bytes with the base one of its own."""
    copy.unlink(missing_ok=True)  # a second try, once there is room
    copy_through(original, copy)


def _check_copied(info: CheckpointInfo, building: Path, digests: Mapping[str, str], files: Collection[Path]) -> None:
    """Checks that the copies of files that are edited hold the weights that were read as the base."""
    read = info.files.keys() & digests.keys()  # a single file may hold layers that no program reads
    for original, own in _by_file(info, read).items():
        if original not in files:
            continue
        try:
            found = tensor_digests(read_tensors(building / original.relative_to(info.path), own))
        except SafetensorError:
            found = {}
        if found != {stored: digests[name] for stored, name in own.items()}:
            raise CheckpointError(
                f"expected a copy of {original} as it was read, found another: it was written to meanwhile; "
                "start again when nobody does"
            )


def _by_file(info: CheckpointInfo, names: Iterable[str]) -> dict[Path, dict[str, str]]:
    """Returns of each file those of the named weights that are in it, by their names there."""
    held: dict[Path, dict[str, str]] = {}
    for name in names:
        held.setdefault(info.files[name], {})[info.stored_names[name]] = name
    return held


def changed_names(edit: Edit) -> list[str]:
    """Returns the weights in which the edit flips a bit."""
    return sorted(name for name, change in edit.changes.items() if bool(change.any()))


def check_place(source: Path, target: Path, *, overwrite: bool, for_folder: bool) -> None:
    """Checks that writing `target` leaves `source` and whatever else there is as it is.

    Raises:
        CheckpointError: one is, or lies in, the other; the name is not one that other programs look for; or there is
            something already: anything at all, or with `overwrite` anything but what an export may have written.
    """
    real_source, real_target = source.resolve(), target.resolve()  # links and .. may lead from one into the other
    if real_target.is_relative_to(real_source) or real_source.is_relative_to(real_target):
        raise CheckpointError(f"expected a place outside of the checkpoint {source}, found {target}; choose another")
    if not for_folder and target.suffix != WEIGHT_FILE:
        raise CheckpointError(
            f"expected a name that ends in {WEIGHT_FILE}, found {target.name}; other programs look for it"
        )
    refuse_existing(target, overwrite=overwrite)
    if not for_folder or not target.exists():
        return
    if not target.is_dir() or (any(target.iterdir()) and not (target / MODEL_INDEX).is_file()):
        raise CheckpointError(
            f"expected a checkpoint folder or an empty one to replace, found {target}, which holds something else; "
            "choose another name"
        )
