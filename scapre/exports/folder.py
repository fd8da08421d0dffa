"""A merged checkpoint as a folder in diffusers' layout.

Guarantees:
    1. Only the bytes of edited tensors change; headers, order and other tensors stay as they are.
    2. Files without edited tensors are hard-linked where the file system allows it, copied otherwise.
"""

import os
import shutil
from pathlib import Path

from scapre.checkpoint import CheckpointInfo, inspect_checkpoint
from scapre.checkpoint.tensor_files import flip_bits
from scapre.edit import Edit
from scapre.errors import CheckpointError
from scapre.exports.base import changed_names, check_apart, read_own_base
from scapre.writing import flush, new_folder, refuse_existing


def merge(edit: Edit, checkpoint: Path | str, out: Path | str, *, overwrite: bool = False) -> Path:
    """Writes a full copy of the folder `checkpoint` to `out` in which only the edited tensors differ; returns `out`.

    Raises:
        BaseMismatchError: the checkpoint is not the base of the edit.
        CheckpointError: `out` exists, or cannot be written; nothing is left behind.
    """
    source, target = Path(checkpoint).resolve(), Path(out).absolute()
    check_apart(source, target)
    if source.is_file():
        raise CheckpointError(f"expected a folder to merge, found the file {source}; export it as a single file")
    refuse_existing(target, overwrite=overwrite)
    info = inspect_checkpoint(source)
    read_own_base(edit, info)
    with new_folder(target, overwrite=overwrite) as building:
        _copy_tree(info, edit, building)
    return target


def _copy_tree(info: CheckpointInfo, edit: Edit, building: Path) -> None:
    changed = changed_names(edit)
    rewritten = {info.files[name] for name in changed}
    for original in sorted(info.path.rglob("*")):
        copy = building / original.relative_to(info.path)
        if original.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if original in rewritten:
            shutil.copyfile(original, copy)
            own = [name for name in changed if info.files[name] == original]
            flip_bits(copy, {info.stored_names[name]: edit.changes[name] for name in own})
        else:
            _link_or_copy(original.resolve(), copy)
    for folder in sorted((p for p in building.rglob("*") if p.is_dir()), reverse=True):
        flush(folder)
    flush(building)


def _link_or_copy(original: Path, copy: Path) -> None:
    try:
        os.link(original, copy)
    except OSError:  # another device, or a file system without links
        shutil.copyfile(original, copy)
        flush(copy)
