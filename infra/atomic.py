"""Files that appear whole or not at all.

* Content is written beside its destination, flushed to disk, then renamed over it.
* A failure removes the unfinished file; a kill leaves only a hidden `*.partial`, which nothing reads.
* A full disk is a `NoSpaceError` that says where.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

from infra.errors import NoSpaceError

PARTIAL_SUFFIX = ".partial"
PARTS_SUFFIX = ".parts"
"""Which parts of an unfinished file are there; see `infra.downloads`."""
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


def is_partial(path: Path) -> bool:
    """Says whether `path` is an unfinished file, or what is noted of one."""
    return path.name.startswith(".") and path.name.endswith((PARTIAL_SUFFIX, PARTS_SUFFIX))


@contextmanager
def refuse_full_disk(path: Path) -> Generator[None]:
    """Turns the operating system's "no space left" into a `NoSpaceError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NoSpaceError(
                f"expected room to write {path}, found the disk or quota full; free some space there or set "
                "SCAPRE_HOME to another disk, then run the same command again: finished files are kept"
            ) from error
        raise


@contextmanager
def written_beside(destination: Path, *, overwrite: bool = True) -> Generator[BufferedRandom]:
    """Yields a handle whose content becomes `destination` when the block ends without an error.

    Raises:
        FileExistsError: `destination` exists and `overwrite` is False; exactly one of many rivals succeeds.
        NoSpaceError: the disk or quota is full.
    """
    with refuse_full_disk(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = destination.with_name(f".{destination.name[:200]}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}")
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "w+b") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            if overwrite:
                partial.replace(destination)
            else:
                destination.hardlink_to(partial)  # fails when the name is taken, which a rename would not
        finally:
            partial.unlink(missing_ok=True)
