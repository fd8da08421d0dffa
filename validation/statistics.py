"""Bounds that a gate may rest on.

Guarantees:
    1. A rate's bounds cover at least as often as they say: with `fixed` sampling at every number of pictures chosen
       beforehand (Clopper and Pearson 1934), with `sequential` sampling at all numbers at once, so that one may look
       after every picture and stop whenever one likes.
    2. No pictures means no knowledge: the bounds are 0 and 1.
    3. A mean paired difference is never claimed more precisely than the number of pairs allows, not even when
       every pair agrees.

Sequential bounds are confidence sequences (Robbins 1970; Howard et al. 2021; Waudby-Smith and Ramdas 2024). A rate `p`
is ruled out once a bet against it, fair or losing under every rate on its side, has multiplied its stake by
`1 / (1 - confidence)`; by Ville's inequality that ever happens to a true `p` at most that seldom. Each side bets on
what it must find fast:

    upper: on a tenth of `p` (Wald's likelihood ratio), which wins soonest, of all bets, where a target is drawn at a
        tenth of the limit. At a limit of 10 % that takes 32 pictures without a hit, and 25 or 26 more for each hit.
    lower: on every rate above `p` alike, since nothing is known of how often a remembered target is drawn.

An exact group-sequential boundary, found by dynamic programming, would save another 5 % of the pictures at a tenth of
the limit. It would hold for one maximum number of pictures, limit and stage size only, and its bounds would depend on
the path; these depend on hits and pictures alone, and stay valid when a judgement is continued.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, expm1, log, log1p
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincc, betaln
from scipy.stats import beta, t

Sampling = Literal["fixed", "sequential"]
_BET = 0.1
"""The rate that the upper bound bets on, as a fraction of the rate that it would rule out."""


def upper_bound(hits: int, pictures: int, *, confidence: float, sampling: Sampling = "fixed") -> float:
    """Returns the one-sided upper bound of a rate: 0 hits in 50 pictures only show less than 5.8 % at 95 %."""
    _check(hits, pictures, confidence)
    if hits == pictures:
        return 1.0
    if sampling == "fixed":
        return float(beta.ppf(confidence, hits + 1, pictures - hits))
    # a hit multiplies the stake by 1/10, a miss by (1 - p/10) / (1 - p); solved for the p at which it has won
    per_miss = (-hits * log(_BET) - log1p(-confidence)) / (pictures - hits)
    return -expm1(-per_miss) / (1 - _BET * exp(-per_miss))


def lower_bound(hits: int, pictures: int, *, confidence: float, sampling: Sampling = "fixed") -> float:
    """Returns the one-sided lower bound of a rate."""
    _check(hits, pictures, confidence)
    if hits == 0:
        return 0.0
    if sampling == "fixed":
        return float(beta.ppf(1 - confidence, hits, pictures - hits + 1))
    misses = pictures - hits

    def stake(rate: float) -> float:
        """Returns the logarithm of the mean likelihood ratio of the rates above `rate` against it; falls with it."""
        above = betaln(hits + 1, misses + 1) + log(betaincc(hits + 1, misses + 1, rate))
        return float(above) - hits * log(rate) - (misses + 1) * log1p(-rate)

    # the stake is won as the rate goes to 0 and lost at the share found, where no other rate is likelier
    most = min(hits / pictures, 1 - 1e-9)
    return float(brentq(lambda rate: stake(rate) + log1p(-confidence), 1e-300, most, xtol=1e-15))


def pictures_needed(hits: int, *, limit: float, confidence: float, sampling: Sampling = "fixed") -> int:
    """Returns the smallest number of pictures in which `hits` hits still show a rate of at most `limit`."""
    _check(hits, hits, confidence)
    if not 0 < limit < 1:
        raise ValueError(f"expected a limit between 0 and 1, found {limit:g}; a limit of 0 cannot be shown by sampling")
    low, high = hits, hits + 1  # `low` is too few, `high` becomes enough
    while upper_bound(hits, high, confidence=confidence, sampling=sampling) > limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if upper_bound(hits, middle, confidence=confidence, sampling=sampling) > limit:
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

    Prompts are no second level of clusters. Every concept is asked for with the pack's templates in turn, so what a
    template does to all concepts alike moves every mean by the same amount: it belongs to the difference that is
    estimated. Clusters of prompts would be needed to speak of prompts beyond the pack, of which it is no sample.

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
