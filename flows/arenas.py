"""Arenas of the reference world: which concepts a method must remove, which it must leave, and what it is told.

An arena never depends on a method. Look-alike families are dealt into folds, so that defaults can be chosen on some
and measured on others; targets of the larger arenas are drawn with a fixed seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import scapre
from infra.reference import world

FOLDS = 3
OTHERS_STEP = 4
"""Of the concepts outside the families, every fourth is drawn."""
CROWDS = (10, 25, 50, 75, 100)
"""Numbers of targets drawn at random from all objects."""
HIDDEN_SHARE = 0.2
"""Share of the retained concepts of a crowd that the engine is not told of."""
DRAW_SEED = 7


@dataclass(frozen=True)
class Arena:
    """One task for every method."""

    name: str
    targets: tuple[str, ...]
    retain: tuple[str, ...]
    """Names told to the engine."""
    hidden: tuple[str, ...]
    """Names it is not told and must not find."""
    others: tuple[str, ...]
    """Further names, neither told nor withheld; the engine's vocabulary may hold them."""

    @property
    def concepts(self) -> list[scapre.Concept]:
        """The targets with the aliases that the reference world knows."""
        known = {item.name: item for item in world.load_objects()}
        found = []
        for name in self.targets:
            item = known.get(name)
            if item is None:
                found.append(scapre.Concept(name, kind="style"))
            else:
                found.append(scapre.Concept(name, kind=item.kind, aliases=tuple(item.aliases)))
        return found

    @property
    def measured(self) -> dict[str, tuple[str, ...]]:
        """Concepts whose pictures are counted, by role."""
        roles = {"target": self.targets, "told": self.retain, "hidden": self.hidden, "other": self.others}
        return {role: names for role, names in roles.items() if names}


def build_arenas(draws: int = 1) -> dict[str, Arena]:
    """Returns every arena by name; each crowd `draws` times, with other targets and other hidden concepts."""
    crowds = [_crowd(size, draw) for size in CROWDS for draw in range(1, draws + 1)]
    return {arena.name: arena for arena in (*_look_alikes(), *crowds, _styles())}


def _look_alikes() -> list[Arena]:
    items = world.load_objects()
    families = sorted({item.family for item in items if item.family})
    arenas = []
    for fold in range(FOLDS):
        dealt = set(families[fold::FOLDS])
        targets = tuple(i.name for i in items if i.family in dealt and i.role == "target")
        kept = tuple(i.name for i in items if i.family in dealt and i.role != "target")
        others = tuple(i.name for i in items if i.family not in dealt)[::OTHERS_STEP]
        arenas += [
            Arena(f"look-alikes-told-{fold}", targets, kept, (), others),
            Arena(f"look-alikes-hidden-{fold}", targets, (), kept, others),
        ]
    return arenas


def _crowd(size: int, draw: int) -> Arena:
    rng = np.random.default_rng([DRAW_SEED, size] if draw == 1 else [DRAW_SEED, size, draw])
    names = [item.name for item in world.load_objects()]
    order = rng.permutation(len(names))
    targets = sorted(names[i] for i in order[:size])
    rest = [names[i] for i in order[size:]]
    hidden = rest[: round(HIDDEN_SHARE * len(rest))]
    name = f"crowd-{size}" if draw == 1 else f"crowd-{size}-draw-{draw}"
    return Arena(name, tuple(targets), _sorted(rest[len(hidden) :]), _sorted(hidden), world.load_styles())


def _styles() -> Arena:
    styles = world.load_styles()
    targets = styles[1::3]
    kept = tuple(style for style in styles if style not in targets)
    return Arena("styles", targets, kept, (), tuple(item.name for item in world.load_objects()))


def _sorted(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(names))
