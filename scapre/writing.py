"""Files and folders that are complete or absent: built beside their place, flushed to disk, renamed.

Nothing that is there already is replaced unless `overwrite` is set, and then only by what is complete.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from scapre.errors import CheckpointError


@contextlib.contextmanager
def new_folder(target: Path, *, overwrite: bool) -> Generator[Path]:
    """Yields an empty folder beside `target` that takes its place when the block ends without an error.

    Raises:
        CheckpointError: `target` is there already, or cannot be written; nothing is left behind.
    """
    refuse_existing(target, overwrite=overwrite)
    building: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        building.chmod(0o755)
        yield building
        refuse_existing(target, overwrite=overwrite)
        _replace_folder(building, target)
        flush(target.parent)
    except OSError as error:
        raise CheckpointError(f"could not write {target}: {error}; free space or choose another place") from error
    finally:
        if building is not None and building.exists():
            shutil.rmtree(building, ignore_errors=True)


@contextlib.contextmanager
def new_file(target: Path, *, overwrite: bool) -> Generator[Path]:
    """Yields the path of a file beside `target` that takes its place when the block ends without an error.

    Raises:
        CheckpointError: `target` is there already, or cannot be written; nothing is left behind.
    """
    if target.is_dir():
        raise CheckpointError(f"expected a place for a file, found the folder {target}; choose another name")
    refuse_existing(target, overwrite=overwrite)
    building: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        building = Path(name)
        yield building
        building.chmod(0o644)
        flush(building)
        refuse_existing(target, overwrite=overwrite)
        building.replace(target)
        flush(target.parent)
    except OSError as error:
        raise CheckpointError(f"could not write {target}: {error}; free space or choose another place") from error
    finally:
        if building is not None:
            building.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Has a file or folder written through to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Checks that there is nothing at `target`, or that it may be replaced.

    Raises:
        CheckpointError: otherwise.
    """
    if target.exists() and not overwrite:
        raise CheckpointError(
            f"expected a new name, found {target} there already; choose another one, or allow `overwrite`"
        )


def check_writable(target: Path) -> None:
    """Checks, before work that takes long, that `target` can be written.

    Raises:
        CheckpointError: the first folder above it that exists is none, or cannot be written to.
    """
    above = next(folder for folder in target.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=above):  # permissions alone do not tell what a read-only disk allows
            pass
    except OSError as error:
        raise CheckpointError(
            f"expected a place that can be written to, found {target}: {error}; choose another"
        ) from error


def _replace_folder(building: Path, target: Path) -> None:
    if not target.exists():
        building.rename(target)
        return
    retired = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.")) / target.name
    try:
        target.rename(retired)
        building.rename(target)
    finally:
        if not target.exists():
            retired.rename(target)
        shutil.rmtree(retired.parent, ignore_errors=True)
