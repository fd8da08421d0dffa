"""Malformed documents, generated: a valid one with one thing wrong, and the name that the refusal must hold."""

import copy
from collections.abc import Iterator
from typing import Any

WRONG: tuple[Any, ...] = (None, "", " ", [], {}, -1, 2.5, True, "x\n" * 3, "\x00", ["a"], {"a": 1})
"""Values of many types; each is tried in every place, and counts only where it is not a valid one."""

Path = tuple[str | int, ...]


def places(document: Any, path: Path = ()) -> Iterator[Path]:
    """Yields the path of every value below a document."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(document: Any, path: Path, value: Any) -> Any:
    """Returns a copy with another value at a path."""
    copied = copy.deepcopy(document)
    holder = copied
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return copied


def without(document: Any, path: Path) -> Any:
    """Returns a copy without what is at a path."""
    copied = copy.deepcopy(document)
    holder = copied
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return copied


def misspelled(document: Any, path: Path) -> Any:
    """Returns a copy in which the key at a path is spelled otherwise."""
    value = document
    for key in path:
        value = value[key]
    return changed(without(document, path), (*path[:-1], f"{path[-1]}x"), value)


def malformed(document: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields names of which a refusal must hold one, and a document with something wrong; some may still be valid."""
    for path in places(document):
        *holders, name = [str(key) for key in path if isinstance(key, str)]
        for value in WRONG:
            yield (name,), changed(document, path, value)
        if isinstance(path[-1], str):
            yield (name,), misspelled(document, path)
            yield (name, *holders[-1:]), without(document, path)
