import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation.gates import forgetting_gate, retention_gate
from validation.measures import bound_differences
from validation.policy import Policy
from validation.statistics import Sampling, lower_bound, paired_bounds, pictures_needed, upper_bound


@pytest.mark.parametrize(
    ("hits", "pictures", "percent"),
    [
        (0, 50, 5.8),
        (0, 142, 2.1),
        (0, 300, 1.0),
        (0, 29, 9.8),
        (2, 64, 9.5),
        (1, 64, 7.2),
        (5, 5, 100.0),
        (0, 0, 100.0),
    ],
)
def test_upper_bounds_are_the_published_ones(hits: int, pictures: int, percent: float):
    assert round(100 * upper_bound(hits, pictures, confidence=0.95), 1) == percent


def test_lower_bound_mirrors_upper_bound():
    for hits, pictures in ((0, 10), (3, 10), (10, 10), (7, 64)):
        mirrored = 1 - upper_bound(pictures - hits, pictures, confidence=0.95)
        assert lower_bound(hits, pictures, confidence=0.95) == pytest.approx(mirrored, abs=1e-12)


def test_bounds_invert_the_binomial_tail():
    hits, pictures, confidence = 3, 40, 0.95
    rate = upper_bound(hits, pictures, confidence=confidence)
    tail = sum(math.comb(pictures, k) * rate**k * (1 - rate) ** (pictures - k) for k in range(hits + 1))
    assert tail == pytest.approx(1 - confidence, abs=1e-9)


@pytest.mark.parametrize(
    ("hits", "limit", "pictures"), [(0, 0.10, 29), (0, 0.01, 299), (0, 0.001, 2995), (0, 0.05, 59), (2, 0.10, 61)]
)
def test_pictures_needed_is_the_smallest_number_that_shows_the_limit(hits: int, limit: float, pictures: int):
    assert pictures_needed(hits, limit=limit, confidence=0.95) == pictures
    assert upper_bound(hits, pictures, confidence=0.95) <= limit
    assert upper_bound(hits, pictures - 1, confidence=0.95) > limit


def test_zero_hits_obey_the_rule_of_three():
    for pictures in (100, 300, 1000):
        assert upper_bound(0, pictures, confidence=0.95) == pytest.approx(3 / pictures, rel=0.02)


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0.55, 0.999))
def test_more_hits_never_lower_a_bound_and_more_misses_never_raise_one(hits: int, misses: int, confidence: float):
    n = hits + misses
    for bound in (upper_bound, lower_bound):
        here = bound(hits, n, confidence=confidence)
        assert 0 <= here <= 1
        assert bound(hits + 1, n + 1, confidence=confidence) >= here - 1e-12
        assert bound(hits, n + 1, confidence=confidence) <= here + 1e-12
    assert lower_bound(hits, n, confidence=confidence) <= upper_bound(hits, n, confidence=confidence)


@pytest.mark.parametrize(("hits", "pictures"), [(-1, 5), (6, 5)])
def test_impossible_counts_are_refused(hits: int, pictures: int):
    with pytest.raises(ValueError, match="expected 0 <= hits <= pictures"):
        upper_bound(hits, pictures, confidence=0.95)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_outside_the_unit_interval_is_refused(confidence: float):
    with pytest.raises(ValueError, match="expected a confidence between 0 and 1"):
        upper_bound(1, 5, confidence=confidence)


def test_paired_bounds_agree_with_students_t():
    clusters = [[0.0, -1.0], [0.0, 0.0], [-1.0, -1.0], [1.0, 0.0]]
    bounds = paired_bounds(clusters, confidence=0.95)
    means = np.array([-0.5, 0.0, -1.0, 0.5])
    width = 2.353363 * means.std(ddof=1) / 2  # the 95 % point of t with 3 degrees of freedom
    assert (bounds.mean, bounds.pairs, bounds.clusters) == (-0.25, 8, 4)
    assert bounds.lower == pytest.approx(max(-1.0, -0.25 - width), abs=1e-6)
    assert bounds.upper == pytest.approx(-0.25 + width, abs=1e-6)


def test_without_any_difference_the_bound_is_the_exact_one_for_no_discordant_pair():
    bounds = paired_bounds([[0.0] * 8] * 40, confidence=0.95)
    assert bounds.mean == 0
    assert bounds.lower == pytest.approx(-upper_bound(0, 320, confidence=0.95), abs=1e-12)
    assert bounds.upper == -bounds.lower


def test_a_constant_total_loss_is_bounded_away_from_zero():
    bounds = paired_bounds([[-1.0] * 8] * 10, confidence=0.95)
    assert bounds.lower == -1
    assert bounds.upper == pytest.approx(-1 + upper_bound(0, 80, confidence=0.95), abs=1e-12)


@pytest.mark.parametrize("clusters", [[], [[]], [[], []]])
def test_no_pairs_mean_no_knowledge(clusters: list[list[float]]):
    bounds = paired_bounds(clusters, confidence=0.95)
    assert (bounds.lower, bounds.upper, bounds.pairs) == (-1.0, 1.0, 0)


def test_one_concept_means_no_knowledge_of_the_others():
    bounds = paired_bounds([[0.0] * 1000], confidence=0.95)
    assert (bounds.lower, bounds.upper) == (-1.0, 1.0)


@pytest.mark.parametrize("difference", [1.5, -2.0, float("nan")])
def test_differences_outside_the_unit_interval_are_refused(difference: float):
    with pytest.raises(ValueError, match="expected paired differences in"):
        paired_bounds([[0.0], [difference]], confidence=0.95)


@given(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=6), min_size=2, max_size=12))
def test_paired_bounds_enclose_the_mean_and_mirror_under_swapping_the_models(clusters: list[list[float]]):
    bounds = paired_bounds(clusters, confidence=0.95)
    swapped = paired_bounds([[-value for value in cluster] for cluster in clusters], confidence=0.95)
    assert -1 <= bounds.lower <= bounds.mean <= bounds.upper <= 1
    assert (swapped.lower, swapped.upper) == pytest.approx((-bounds.upper, -bounds.lower), abs=1e-12)


def test_a_candidate_at_the_limit_passes_the_forgetting_gate_no_more_often_than_allowed():
    rng, policy = np.random.default_rng(11), Policy(sampling="fixed", probes_per_target=64)
    hits = rng.binomial(64, policy.residual_limit, size=4000)
    verdict = {
        k: forgetting_gate("tiger", hits=k, pictures=64, expected=64, policy=policy).verdict for k in set(hits.tolist())
    }
    passed = np.mean([verdict[k] == "passed" for k in hits.tolist()])
    failed = np.mean([verdict[k] == "failed" for k in hits.tolist()])
    assert passed <= 0.05
    assert failed <= 0.05
    assert passed > 0.01  # the gate can pass: the simulation exercises it


LOOKS = 100
Looks = Literal["below the rate", "above the rate"]


def ever_wrong(rate: float, *, sampling: Sampling, side: Looks) -> float:
    """Returns the exact chance that a bound is on the wrong side of the rate at any of the first `LOOKS` pictures."""
    alive, wrong = np.array([1.0]), 0.0  # chance of every number of hits while no look was wrong
    for pictures in range(1, LOOKS + 1):
        alive = np.append(alive * (1 - rate), 0.0) + np.append(0.0, alive * rate)
        if side == "below the rate":  # hits up to some number give an upper bound below the rate
            bad = [upper_bound(h, pictures, confidence=0.95, sampling=sampling) < rate for h in range(pictures + 1)]
        else:
            bad = [lower_bound(h, pictures, confidence=0.95, sampling=sampling) > rate for h in range(pictures + 1)]
        wrong += alive[bad].sum()
        alive[bad] = 0
    return wrong


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("side", ["below the rate", "above the rate"])
def test_sequential_bounds_are_rarely_wrong_though_one_looks_after_every_picture(rate: float, side: Looks):
    assert ever_wrong(rate, sampling="sequential", side=side) <= 0.05


def test_looking_at_fixed_bounds_after_every_picture_is_wrong_far_more_often():
    assert ever_wrong(0.1, sampling="fixed", side="below the rate") > 0.10
    assert ever_wrong(0.1, sampling="fixed", side="above the rate") > 0.10


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.55, 0.999))
def test_sequential_bounds_move_as_rates_do_and_are_never_tighter_than_fixed_ones(
    hits: int, misses: int, confidence: float
):
    n = hits + misses
    for bound in (upper_bound, lower_bound):
        here = bound(hits, n, confidence=confidence, sampling="sequential")
        assert 0 <= here <= 1
        assert bound(hits + 1, n + 1, confidence=confidence, sampling="sequential") >= here - 1e-12
        assert bound(hits, n + 1, confidence=confidence, sampling="sequential") <= here + 1e-12
    assert upper_bound(hits, n, confidence=confidence, sampling="sequential") >= upper_bound(
        hits, n, confidence=confidence
    )
    assert lower_bound(hits, n, confidence=confidence, sampling="sequential") <= lower_bound(
        hits, n, confidence=confidence
    )


@given(st.integers(0, 8), st.integers(4, 200), st.floats(0.8, 0.999))
def test_the_sequential_upper_bound_is_where_the_likelihood_ratio_has_won(hits: int, misses: int, confidence: float):
    rate = upper_bound(hits, hits + misses, confidence=confidence, sampling="sequential")
    won = hits * math.log(0.1) + misses * math.log((1 - rate / 10) / (1 - rate))
    assert won == pytest.approx(-math.log(1 - confidence), rel=1e-6)


@given(st.integers(1, 40), st.integers(0, 100), st.floats(0.8, 0.999))
def test_the_sequential_lower_bound_is_where_the_mixture_has_won(hits: int, misses: int, confidence: float):
    n = hits + misses
    rate = lower_bound(hits, n, confidence=confidence, sampling="sequential")
    above = np.linspace(rate, 1, 200_001)[1:-1]
    with np.errstate(divide="ignore"):
        ratio = hits * np.log(above / rate) + misses * np.log((1 - above) / (1 - rate))
    assert np.exp(ratio).mean() * (1 - confidence) == pytest.approx(1, rel=2e-3)


@pytest.mark.parametrize(("hits", "pictures"), [(0, 32), (1, 57), (2, 82), (3, 107), (4, 133)])
def test_pictures_needed_sequentially_is_the_smallest_number_that_shows_the_limit(hits: int, pictures: int):
    assert pictures_needed(hits, limit=0.1, confidence=0.95, sampling="sequential") == pictures
    assert upper_bound(hits, pictures - 1, confidence=0.95, sampling="sequential") > 0.1


def test_a_loss_of_exactly_the_margin_passes_the_retention_gate_no_more_often_than_allowed():
    rng, policy = np.random.default_rng(12), Policy()
    import pandas as pd

    verdicts = []
    for _ in range(300):
        loss = np.clip(rng.normal(policy.retained_margin, 0.03, size=40), 0, 1)  # concepts differ in how much they lose
        lost = rng.random((40, 8)) < loss[:, None]
        differences = pd.Series(-lost.ravel().astype(int), index=np.repeat(np.arange(40), 8))
        verdicts.append(
            retention_gate("retained", differences, expected=320, margin=policy.retained_margin, policy=policy).verdict
        )
        assert bound_differences(differences, confidence=0.95).clusters == 40
    # 5 % plus three standard errors of 300 draws, and the slight skew of small proportions
    assert np.mean([verdict == "passed" for verdict in verdicts]) <= 0.09
    assert np.mean([verdict == "failed" for verdict in verdicts]) <= 0.09
    assert "passed" in verdicts
