"""Large objects fetched in parts that survive: a cut stream, a time-out or a kill costs the part in hand, no more.

* Parts are fetched in parallel and written where they belong in a hidden file beside the destination.
* A part counts once it is on disk and noted; the next attempt, in this process or another, fetches only the rest.
* Parts belong to one object: what was begun for another entity tag is not gone on with.
* Two processes with the same destination do not share a file: the second one starts its own.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from infra.atomic import PARTIAL_SUFFIX, PARTS_SUFFIX, refuse_full_disk
from infra.errors import TransientFailure

Fetch = Callable[[int, int], bytes]
"""Returns the bytes of an object from the first to the last, both counted."""
_PARALLEL = 4
_TRIES = 100


@dataclass(frozen=True)
class Remote:
    """One object as it is now."""

    name: str
    etag: str
    size: int


def fetch_parts(remote: Remote, fetch: Fetch, *, partial: Path, part_bytes: int) -> None:
    """Fills a partial file with an object's bytes; parts that are there already are not fetched again.

    Args:
        remote: What to fetch.
        fetch: Fetches a range; what it raises ends this attempt, and finished parts stay.
        partial: From `held_partial`.
        part_bytes: Size of a part.
    """
    notes = partial.with_suffix(PARTS_SUFFIX)
    wanted = {"name": remote.name, "etag": remote.etag, "size": remote.size, "part_bytes": part_bytes}
    done = _done(notes, wanted)
    with refuse_full_disk(partial), partial.open("r+b") as file, notes.open("a" if done else "w") as journal:
        if not done:
            journal.write(json.dumps(wanted) + "\n")
            journal.flush()
        file.truncate(remote.size)
        starts = [start for start in range(0, remote.size, part_bytes) if start not in done]

        def one(start: int) -> None:
            content = fetch(start, min(start + part_bytes, remote.size) - 1)
            os.pwrite(file.fileno(), content, start)
            os.fsync(file.fileno())
            os.write(journal.fileno(), f"{start}\n".encode())  # one write of one short line: whole or absent

        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(one, starts))


@contextmanager
def held_partial(destination: Path) -> Generator[Path]:
    """Yields the partial file of a destination, held by this process alone; becomes the destination when all went well.

    It stays after a failure or a kill, hidden, to be gone on with.
    """
    with refuse_full_disk(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        number = 0
        for _ in range(_TRIES):
            tag = sha256(f"{destination.name} {number}".encode()).hexdigest()[:12]
            partial = destination.with_name(f".{destination.name[:200]}.{tag}{PARTIAL_SUFFIX}")
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if partial.exists() and partial.stat().st_ino == os.fstat(descriptor).st_ino:
                    break  # else its holder finished in this very moment: the file is the destination now
            except BlockingIOError:
                number += 1
            os.close(descriptor)
        else:
            raise TransientFailure(
                f"expected a file of its own beside {destination}, found each of {_TRIES} taken; try again"
            )
    try:
        yield partial
        partial.replace(destination)
        partial.with_suffix(PARTS_SUFFIX).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def discard(partial: Path) -> None:
    """Removes the parts fetched so far: together they were not what was asked for."""
    for path in (partial, partial.with_suffix(PARTS_SUFFIX)):
        path.unlink(missing_ok=True)


def _done(notes: Path, wanted: Mapping[str, object]) -> set[int]:
    try:
        lines = notes.read_text().splitlines()
        if json.loads(lines[0]) != wanted:
            return set()
        return {int(line) for line in lines[1:]}
    except (OSError, ValueError, IndexError):
        return set()
