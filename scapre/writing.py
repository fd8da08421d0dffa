"""Files and folders that are complete or absent: built beside their place, flushed to disk, renamed.

Nothing that is there already is replaced unless `overwrite` is set, and then only by what is complete.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from scapre.errors import CheckpointError

PIECE_BYTES = 1 << 26
"""Of a file that is copied, so many are written to the disk at once."""


@contextlib.contextmanager
def new_folder(target: Path, *, overwrite: bool) -> Generator[Path]:
    """Yields an empty folder beside `target` that takes its place when the block ends without an error.

    Raises:
        CheckpointError: `target` is there already, or cannot be written; nothing is left behind.
    """
    check = partial(refuse_existing, target, overwrite=overwrite)
    with told_as_unwritable(target), begun_folder(target, check) as building:
        yield building


@contextlib.contextmanager
def new_file(target: Path, *, overwrite: bool) -> Generator[Path]:
    """Yields the path of a file beside `target` that takes its place when the block ends without an error.

    Raises:
        CheckpointError: `target` is there already, or cannot be written; nothing is left behind.
    """
    check = partial(refuse_existing, target, overwrite=overwrite)
    with told_as_unwritable(target), begun_file(target, check) as building:
        yield building


@contextlib.contextmanager
def begun_folder(target: Path, check: Callable[[], None]) -> Generator[Path]:
    """As `new_folder`, for a block that does more than write: its errors are its own.

    `check` raises unless `target` may be written; it is asked at the beginning, and before `target` is replaced.
    """
    check()
    with _parents_made(target):
        building = _beside(target)
        with told_as_unwritable(target):
            building.mkdir()
        try:
            yield building
            check()
            with told_as_unwritable(target):
                _replace_folder(building, target)
                flush(target.parent)
        except CheckpointError as error:
            if str(building) not in str(error):
                raise
            raise CheckpointError(str(error).replace(str(building), str(target))) from error  # the name that is known
        finally:
            shutil.rmtree(building, ignore_errors=True)


@contextlib.contextmanager
def begun_file(target: Path, check: Callable[[], None]) -> Generator[Path]:
    """As `new_file`, for a block that does more than write: its errors are its own; `check` as of `begun_folder`."""
    if target.exists() and not target.is_file():
        what = "folder" if target.is_dir() else "device"
        raise CheckpointError(f"expected a place for a file, found the {what} {target}; choose another name")
    check()
    target = Path(os.path.realpath(target))  # what a link leads to is replaced, not the link
    with _parents_made(target):
        building = _beside(target)
        with told_as_unwritable(target):
            building.touch(exist_ok=False)
        try:
            yield building
            check()
            with told_as_unwritable(target):
                flush(building)
                building.replace(target)
                flush(target.parent)
        finally:
            building.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    """Returns a name that nobody else has; what is made of it gets the caller's permissions, unlike `tempfile`'s."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}")


@contextlib.contextmanager
def _parents_made(target: Path) -> Generator[None]:
    """Makes the folders above `target`, and takes away again those of them that are empty in the end."""
    with told_as_unwritable(target):
        missing = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the first that holds something ends it
            for folder in missing:
                folder.rmdir()


@contextlib.contextmanager
def told_as_unwritable(target: Path) -> Generator[None]:
    """Turns what the system says of writing in the block into a `CheckpointError` about `target`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"could not write {target}: {error}; free space or choose another place") from error


@contextlib.contextmanager
def copying(copies: Mapping[Path, Path]) -> Generator[Callable[[], None]]:
    """Copies files, source by target, beside the block; yields what waits for them and raises what went wrong.

    A block that ends without waiting, as by an error, ends the copying.
    """
    given_up = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        begun = [pool.submit(copy_through, source, target, given_up) for target, source in copies.items()]

        def wait() -> None:
            for copy in begun:
                copy.result()

        try:
            yield wait
        finally:
            given_up.set()


def copy_through(source: Path, target: Path, given_up: threading.Event | None = None) -> None:
    """Copies the content of a file and has it written to the disk, what is copied already beside what is not yet.

    That takes about half of the time of one after the other, which is how it is done where the system knows no better.
    Once it is given up, the copy is left as it is.

    Raises:
        CheckpointError: the file was written to while it was copied.
        OSError: it cannot be read, or the copy not be written.
    """
    given_up = given_up or threading.Event()
    before = _last_written(source)
    try:
        _send_through(source, target, given_up)
    except (AttributeError, OSError):
        if target.exists() and target.stat().st_size:  # it knew how, and failed
            raise
        _copy_plainly(source, target, given_up)
    if given_up.is_set():
        return
    flush(target)
    if _last_written(source) != before:
        raise CheckpointError(
            f"expected {source} to stay as it is while it is copied, found it written to; start again when nobody does"
        )


def _last_written(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _send_through(source: Path, target: Path, given_up: threading.Event) -> None:
    with source.open("rb") as reader, target.open("wb") as writer, ThreadPoolExecutor(1) as pool:
        sent, written = 0, []
        while not given_up.is_set() and (count := os.sendfile(writer.fileno(), reader.fileno(), sent, PIECE_BYTES)):
            sent += count
            written.append(pool.submit(os.fdatasync, writer.fileno()))
        for piece in written:
            if given_up.is_set():
                pool.shutdown(cancel_futures=True)
                return
            piece.result()


def _copy_plainly(source: Path, target: Path, given_up: threading.Event) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while not given_up.is_set() and (piece := reader.read(PIECE_BYTES)):
            writer.write(piece)


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
    if os.path.lexists(target) and not overwrite:
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
        if retired.exists() and not target.exists():
            retired.rename(target)
        shutil.rmtree(retired.parent, ignore_errors=True)
