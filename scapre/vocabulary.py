"""Everyday names the engine retains on its own, so that what nobody named survives as well.

Guarantees:
    1. Names of a target, and names that contain one ("black cat" for "cat"), are never proposed.
    2. A withheld name is never proposed, nor any entry that contains it or is contained in it.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files

from scapre.concepts import Concept, name_key, word_keys, word_runs


def everyday_names() -> tuple[str, ...]:
    """Returns the shipped vocabulary, in canonical order."""
    return tuple(_by_key().values())


@cache
def _by_key() -> Mapping[str, str]:
    distinct = {name_key(name): name for section in _sections() for name in section}
    return dict(sorted(distinct.items()))


@cache
def shapeless_names() -> frozenset[str]:
    """Returns the entries that name no thing (colours, doings, scenes), so that no target can become one."""
    return frozenset(_sections()[1])


def _sections() -> list[list[str]]:
    """Returns the names below each heading of the shipped vocabulary: first things, then what is none."""
    sections: list[list[str]] = []
    for line in files("scapre").joinpath("vocabulary.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            sections.append([])
        elif line.strip():
            sections[-1].append(line.strip())
    return sections


def proposable_names(concepts: Iterable[Concept], retain: Iterable[str], withheld: Iterable[str]) -> tuple[str, ...]:
    """Returns the vocabulary without targets, without names retained anyway and without withheld names."""
    targets = {word_keys(name) for concept in concepts for name in concept.names}  # there may be thousands
    hidden = [name_key(name) for name in withheld]
    named = {name_key(name) for name in retain}
    return tuple(
        name
        for key, name in _by_key().items()
        if key not in named
        and targets.isdisjoint(word_runs(name))
        # plain substrings here: what is withheld is there to be measured, so rather too strict than too lax
        and not any(hide in key or key in hide for hide in hidden)
    )
