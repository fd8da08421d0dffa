"""What a benchmark's results say: means and spreads, UQ, how many concepts a method takes, which strength to choose.

Guarantees:
    1. Means and spreads are taken over seeds of probes; no best run is picked.
    2. Every method may choose among its own strengths, by the same rule and on other concepts than it is scored on.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from flows.arenas import CROWDS, FOLDS
from flows.benchmark import BASE_METHOD, Result

RESIDUAL_ALLOWED = 5.0
"""Percent of the targets' pictures that may still show them, for a crowd to count as removed."""
RETAINED_ASKED = 95.0
"""Percent of what the base draws of the retained concepts that must be left."""
_SAME = 1e-12


@dataclass(frozen=True)
class Row:
    """One contestant in one arena, over the seeds: means, and the spread of Overall."""

    arena: str
    contestant: str
    seeds: int
    rates: Mapping[str, float]
    """Share of pictures in which the concept was found, by role, in percent."""
    spreads: Mapping[str, float]
    """Standard deviation of the same over the seeds."""
    overall: float
    overall_spread: float
    image_text: float
    """Mean cosine of picture and prompt over what was to be kept."""
    uq: float
    """Unlearning quality as the paper scores it, in percent, among the contestants of this arena: another company,
    another figure. Never to be quoted alone."""

    @property
    def method(self) -> str:
        """The contestant's method, whatever its dials."""
        return self.contestant.split(" ", 1)[0]


def summarize(results: Sequence[Result]) -> list[Row]:
    """Returns a row per arena and contestant, in the order of the results."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.arena, result.contestant), []).append(result)
    rows = [_summarize(arena, contestant, own) for (arena, contestant), own in groups.items()]
    scored: list[Row] = []
    for arena in dict.fromkeys(row.arena for row in rows):
        own = [row for row in rows if row.arena == arena]
        scores = unlearning_quality([row.rates["target"] for row in own], [row.image_text for row in own])
        scored += [replace(row, uq=score) for row, score in zip(own, scores, strict=True)]
    return scored


def unlearning_quality(accuracy: Sequence[float], image_text: Sequence[float]) -> list[float]:
    """Returns UQ of every column compared, the original model among them, in percent (paper, Section 4).

    `UQ = 100 * 2 * A * C / (A + C)` with `A = sigmoid((mean(a) - a) / std(a))` of the targets' accuracy and
    `C = sigmoid((c - mean(c)) / std(c))` of the image-text score; means and population deviations over the columns.
    Where all columns agree, nobody is better: 0.5.
    """
    forgotten, kept = (expit(_standardize(values)) for values in ([-value for value in accuracy], image_text))
    return [float(score) for score in 100 * 2 * forgotten * kept / (forgotten + kept)]


def _standardize(values: Sequence[float]) -> NDArray[np.float64]:
    centred = np.asarray(values, dtype=np.float64) - np.mean(values)
    deviation = centred.std()
    return np.zeros_like(centred) if deviation <= _SAME else centred / deviation  # what is not known stays so


def _summarize(arena: str, contestant: str, own: Sequence[Result]) -> Row:
    rates = {role: [r.rate(role) for r in own] for role in own[0].pictures}
    overall = [r.overall for r in own]
    return Row(
        arena=arena,
        contestant=contestant,
        seeds=len(own),
        rates={role: statistics.mean(values) for role, values in rates.items()},
        spreads={role: _spread(values) for role, values in rates.items()},
        overall=statistics.mean(overall),
        overall_spread=_spread(overall),
        image_text=statistics.mean(r.image_text for r in own),
        uq=math.nan,  # takes all contestants
    )


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Capacity:
    """The largest crowd that a method removed with any of its strengths while the retained concepts stayed."""

    method: str
    targets: int
    """Concepts at once; 0 where not even the smallest crowd was removed."""
    row: Row | None
    """The figures at that crowd, of the strength that left the most of the retained concepts."""


def capacities(rows: Sequence[Row]) -> list[Capacity]:
    """Returns each method's capacity: residual at most 5 %, retained (told) at least 95 % of the base's.

    Crowds without a measurement of the base are left out, and so are methods without any other: nothing can be said of
    them.
    """
    base = {row.arena: row.rates["told"] for row in rows if row.method == BASE_METHOD and "told" in row.rates}
    sizes = {name: size for size in CROWDS if (name := f"crowd-{size}") in base}
    found = []
    for method in _methods(rows):
        comparable = [row for row in rows if row.method == method and row.arena in sizes]
        best: tuple[int, float, Row] | None = None
        for row in comparable:
            size, kept = sizes[row.arena], 100 * row.rates["told"] / base[row.arena]
            is_removed = row.rates["target"] <= RESIDUAL_ALLOWED and kept >= RETAINED_ASKED
            if is_removed and (best is None or (size, kept) > best[:2]):
                best = size, kept, row
        if comparable:
            found.append(Capacity(method, best[0] if best else 0, best[2] if best else None))
    return found


@dataclass(frozen=True)
class Choice:
    """A strength chosen on all folds of look-alike families but one, and what it does on that one."""

    method: str
    fold: int
    contestant: str
    """Method and dials that leave the least of the targets on the other folds, look-alikes named and hidden, among
    those whose mean Overall there is within one standard error (over seeds) of the best."""
    told: float
    """Overall on the left-out fold, its look-alikes named to the engine."""
    hidden: float
    """Overall on the left-out fold, its look-alikes hidden from the engine."""


def leave_one_fold_out(rows: Sequence[Row]) -> list[Choice]:
    """Returns, for every method and fold that was measured whole, the strength chosen on the other folds."""
    measured = {(row.contestant, row.arena): row for row in rows}
    found = []
    for method in _methods(rows):
        contestants = dict.fromkeys(row.contestant for row in rows if row.method == method)
        whole = [c for c in contestants if all((c, arena) in measured for f in range(FOLDS) for arena in _arenas(f))]
        for fold in range(FOLDS if whole else 0):
            others = [arena for other in range(FOLDS) if other != fold for arena in _arenas(other)]
            chosen = _choose([[measured[contestant, arena] for arena in others] for contestant in whole])
            told, hidden = (measured[chosen, arena].overall for arena in _arenas(fold))
            found.append(Choice(method, fold, chosen, told, hidden))
    return found


def _choose(contestants: Sequence[Sequence[Row]]) -> str:
    """Returns who leaves the least of the targets among those within one standard error of the best mean Overall."""
    means = [statistics.mean(row.overall for row in own) for own in contestants]
    best = max(range(len(means)), key=means.__getitem__)
    error = math.sqrt(sum(row.overall_spread**2 / row.seeds for row in contestants[best])) / len(contestants[best])
    alike = [own for own, mean in zip(contestants, means, strict=True) if mean >= means[best] - error]
    return min(alike, key=lambda own: statistics.mean(row.rates["target"] for row in own))[0].contestant


def _arenas(fold: int) -> tuple[str, str]:
    return f"look-alikes-told-{fold}", f"look-alikes-hidden-{fold}"


def _methods(rows: Sequence[Row]) -> list[str]:
    return [method for method in dict.fromkeys(row.method for row in rows) if method != BASE_METHOD]
