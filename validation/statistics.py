"""Bounds that a gate may rest on.

Guarantees:
    1. A rate's bounds are exact (Clopper and Pearson 1934): they cover at least as often as they say, at every `n`.
    2. No pictures means no knowledge: the bounds are 0 and 1.
    3. A mean paired difference is never claimed more precisely than the number of pairs allows, not even when
       every pair agrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, t


def upper_bound(hits: int, pictures: int, *, confidence: float) -> float:
    """Returns the exact one-sided upper bound of a rate: 0 hits in 50 pictures only show less than 5.8 % at 95 %."""
    _check(hits, pictures, confidence)
    return 1.0 if hits == pictures else float(beta.ppf(confidence, hits + 1, pictures - hits))


def lower_bound(hits: int, pictures: int, *, confidence: float) -> float:
    """Returns the exact one-sided lower bound of a rate."""
    _check(hits, pictures, confidence)
    return 0.0 if hits == 0 else float(beta.ppf(1 - confidence, hits, pictures - hits + 1))


def pictures_needed(hits: int, *, limit: float, confidence: float) -> int:
    """Returns the smallest number of pictures in which `hits` hits still show a rate of at most `limit`."""
    _check(hits, hits, confidence)
    if not 0 < limit < 1:
        raise ValueError(f"expected a limit between 0 and 1, found {limit:g}; a limit of 0 cannot be shown by sampling")
    low, high = hits, hits + 1  # `low` is too few, `high` becomes enough
    while upper_bound(hits, high, confidence=confidence) > limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if upper_bound(hits, middle, confidence=confidence) > limit:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True)
class PairedBounds:
    """A mean paired difference (candidate minus base) and its one-sided bounds."""

    mean: float
    lower: float
    upper: float
    pairs: int
    clusters: int


def paired_bounds(clusters: Sequence[Sequence[float]], *, confidence: float) -> PairedBounds:
    """Returns the mean of the clusters' mean differences with one-sided bounds at `confidence`.

    Pictures of one concept stand or fall together, so a concept is one observation: its mean difference. The bounds are
    Student's t over those means. A bootstrap of few clusters is too narrow, and it needs a seed; t needs neither.

    The interval is never narrower than `1 - (1 - confidence) ** (1 / pairs)` on either side, the exact bound on a
    change that no pair out of `pairs` showed ("rule of three"). It is what remains when all means are equal and t has
    no width.

    Args:
        clusters: Per concept, the differences of its pairs, each in [-1, 1].
        confidence: Of each of the two bounds.
    """
    _check(0, 0, confidence)
    kept = [np.asarray(cluster, dtype=np.float64) for cluster in clusters if len(cluster)]
    pairs = sum(len(cluster) for cluster in kept)
    if pairs == 0:
        return PairedBounds(0.0, -1.0, 1.0, 0, 0)
    if any(not np.all(np.abs(cluster) <= 1) for cluster in kept):
        raise ValueError("expected paired differences in [-1, 1], found one outside; pass differences of 0/1 outcomes")
    means = np.array([cluster.mean() for cluster in kept])
    mean = float(means.mean())
    if len(means) < 2:  # one concept says nothing about the spread between concepts
        return PairedBounds(mean, -1.0, 1.0, pairs, 1)
    student = float(t.ppf(confidence, len(means) - 1)) * float(means.std(ddof=1)) / len(means) ** 0.5
    width = max(student, 1 - (1 - confidence) ** (1 / pairs))
    return PairedBounds(mean, max(-1.0, mean - width), min(1.0, mean + width), pairs, len(means))


def score_bounds(clusters: Sequence[Sequence[float]], *, confidence: float) -> PairedBounds:
    """Returns the mean of the clusters' mean differences of a score, with one-sided bounds at `confidence`.

    Student's t over the clusters' means, as in `paired_bounds`, but with no floor under the width: an outcome of yes or
    no can hide behind too few pictures, a score cannot. Where no score changed at all, the pictures are the same.

    Args:
        clusters: Per concept, the differences of its pairs.
        confidence: Of each of the two bounds.
    """
    _check(0, 0, confidence)
    means = np.array([np.mean(cluster) for cluster in clusters if len(cluster)])
    pairs = sum(len(cluster) for cluster in clusters)
    if len(means) < 2:  # nothing is known of the spread between concepts
        return PairedBounds(float(means.mean()) if pairs else 0.0, -np.inf, np.inf, pairs, len(means))
    mean, width = float(means.mean()), float(t.ppf(confidence, len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5)
    return PairedBounds(mean, mean - width, mean + width, pairs, len(means))


def _check(hits: int, pictures: int, confidence: float) -> None:
    if not 0 <= hits <= pictures:
        raise ValueError(f"expected 0 <= hits <= pictures, found {hits} hits in {pictures} pictures; count again")
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, found {confidence:g}; 0.95 is usual")
