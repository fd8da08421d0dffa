"""Everyday names the engine retains on its own, so that what nobody named survives as well.

Guarantees:
    1. Names of a target, and names that contain one ("black cat" for "cat"), are never proposed.
    2. A withheld name is never proposed, nor any entry that contains it or is contained in it.
"""

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from scapre.concepts import Concept, name_key, word_keys, word_runs


@cache
def everyday_names() -> tuple[str, ...]:
    """Returns the shipped vocabulary, in canonical order."""
    distinct = {name_key(name): name for section in _sections() for name in section}
    return tuple(distinct[key] for key in sorted(distinct))


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
        for name, key in zip(everyday_names(), _everyday_keys(), strict=True)
        if key not in named
        and targets.isdisjoint(word_runs(name))
        # plain substrings here: what is withheld is there to be measured, so rather too strict than too lax
        and not any(hide in key or key in hide for hide in hidden)
    )


@cache
def _everyday_keys() -> tuple[str, ...]:
    return tuple(name_key(name) for name in everyday_names())
