"""A merged checkpoint as a folder in diffusers' layout.

Guarantees:
    1. Only the bytes of edited tensors change; headers, order and other tensors stay as they are.
    2. Files without edited tensors are hard-linked where the file system allows it, copied otherwise.
    3. The folder is complete or absent: it is built beside its place, flushed to disk and renamed.
"""

import os
import shutil
import tempfile
from pathlib import Path

from scapre.checkpoint import CheckpointInfo, inspect_checkpoint, read_base
from scapre.checkpoint.tensor_files import flip_bits
from scapre.edit import Edit
from scapre.errors import BaseMismatchError, CheckpointError


def merge(edit: Edit, checkpoint: Path | str, out: Path | str) -> Path:
    """Writes a full copy of `checkpoint` to `out` in which only the edited tensors differ; returns `out`.

    Raises:
        BaseMismatchError: the checkpoint is not the base of the edit.
        CheckpointError: `out` exists, or cannot be written; nothing is left behind.
    """
    source, target = Path(checkpoint).resolve(), Path(out).absolute()
    if target.exists():
        raise CheckpointError(f"expected a new folder to merge into, found {target} there already; choose another name")
    if target.is_relative_to(source):
        raise CheckpointError(f"expected a folder outside of the checkpoint, found {target}; choose another place")
    info = inspect_checkpoint(source)
    if (found := read_base(source).digest) != edit.base_digest:
        raise BaseMismatchError(
            f"expected a checkpoint with digest {edit.base_digest}, found {found}; merge into its own base"
        )
    building: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        building.chmod(0o755)
        _copy_tree(info, edit, building)
        if target.exists():
            raise CheckpointError(f"{target} appeared while merging; choose another name")
        building.rename(target)
        _flush(target.parent)
    except OSError as error:
        raise CheckpointError(f"could not write {target}: {error}; free space or choose another place") from error
    finally:
        if building is not None and building.exists():
            shutil.rmtree(building, ignore_errors=True)
    return target


def _copy_tree(info: CheckpointInfo, edit: Edit, building: Path) -> None:
    changed = {name for name, change in edit.changes.items() if bool(change.any())}
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
        _flush(folder)
    _flush(building)


def _link_or_copy(original: Path, copy: Path) -> None:
    try:
        os.link(original, copy)
    except OSError:  # another device, or a file system without links
        shutil.copyfile(original, copy)
        _flush(copy)


def _flush(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
