"""Scores say what was measured, and a strength is chosen on other concepts than it is scored on."""

import math

import pytest

from flows.benchmark import Result
from flows.scores import capacities, leave_one_fold_out, summarize, unlearning_quality


def result(
    seed: int, target: int, told: int, contestant: str = "uce", image_text: float = math.nan, arena: str = "a"
) -> Result:
    hits, pictures = {"target": target, "told": told}, {"target": 10, "told": 10}
    return Result(arena, contestant, seed, "", 10, hits, pictures, image_text)


def test_rows_carry_mean_and_spread():
    row = summarize([result(0, 0, 10), result(1, 2, 8)])[0]
    assert (row.rates["target"], row.rates["told"], row.seeds) == (10, 90, 2)
    assert row.spreads["target"] == pytest.approx(200**0.5)


def test_uq_is_the_one_the_paper_prints():
    accuracy = [89.9, 71.9, 47.4, 38.7, 78.5, 8.5, 4.9, 9.6, 0.8]  # ten classes of Imagenette, the original first
    clip = [31.43, 30.62, 30.81, 30.14, 31.02, 29.45, 29.27, 29.25, 30.43]
    printed = [28.85, 37.35, 52.89, 47.84, 35.07, 37.23, 32.60, 31.78, 64.09]
    assert unlearning_quality(accuracy, clip) == pytest.approx(printed, abs=0.15)
    others = unlearning_quality(accuracy[:-1], clip[:-1])
    assert others != pytest.approx(printed[:-1], abs=0.15)  # another company, another figure
    assert unlearning_quality([5, 5], [0.3, 0.3]) == [50, 50]


def test_uq_is_taken_among_the_contestants_of_an_arena_and_stays_unknown_without_scores():
    base, edited = result(0, 10, 10, "none", 0.8), result(0, 0, 10, image_text=0.8)
    worse, better = (row.uq for row in summarize([base, edited]))
    assert worse < 50 < better
    assert all(math.isnan(row.uq) for row in summarize([base, result(0, 0, 10)]))


def crowd(size: int, contestant: str, target: int, told: int) -> Result:
    return result(0, target, told, contestant, arena=f"crowd-{size}")


def test_capacity_is_the_largest_crowd_that_any_strength_of_a_method_removes_while_the_retained_stay():
    base = [crowd(size, "none", 10, 10) for size in (10, 25, 50)]
    strong = [crowd(10, "uce", 0, 10), crowd(25, "uce", 0, 9), crowd(50, "uce", 0, 2)]  # 90 % of the base: too little
    weak = [crowd(10, "uce a=1", 1, 10), crowd(25, "uce a=1", 0, 10), crowd(50, "uce a=1", 3, 10)]
    nothing = [crowd(10, "oce", 5, 10)]
    found = {c.method: c for c in capacities(summarize([*base, *strong, *weak, *nothing]))}
    assert (found["uce"].targets, found["oce"].targets, found["oce"].row) == (25, 0, None)
    assert found["uce"].row is not None
    assert found["uce"].row.contestant == "uce a=1"


def test_retained_is_measured_against_what_the_base_draws_and_without_the_base_nothing_is_said():
    rows = [crowd(10, "uce", 0, 8)]
    assert capacities(summarize([crowd(10, "none", 10, 8), *rows]))[0].targets == 10
    assert capacities(summarize([crowd(10, "none", 10, 10), *rows]))[0].targets == 0
    assert capacities(summarize(rows)) == []


def fold(number: int, contestant: str, told: int, hidden: int) -> list[Result]:
    return [
        result(0, 0, told, contestant, arena=f"look-alikes-told-{number}"),
        result(0, 0, hidden, contestant, arena=f"look-alikes-hidden-{number}"),
    ]


def test_the_strength_of_a_fold_is_chosen_without_looking_at_it():
    rows = [
        *fold(0, "uce", 10, 0), *fold(1, "uce", 5, 5), *fold(2, "uce", 5, 5),
        *fold(0, "uce a=1", 2, 2), *fold(1, "uce a=1", 9, 9), *fold(2, "uce a=1", 9, 9),
    ]  # fmt: skip
    choices = {choice.fold: choice for choice in leave_one_fold_out(summarize(rows))}
    assert choices[0].contestant == "uce a=1"  # the other would have done better here; that is not looked at
    assert choices[0].told == pytest.approx(summarize(fold(0, "uce a=1", 2, 2))[0].overall)
    assert leave_one_fold_out(summarize(rows[:6])) != []
    assert leave_one_fold_out(summarize(rows[:4])) == []  # a strength that misses a fold cannot be chosen fairly


def test_of_strengths_that_cannot_be_told_apart_the_one_that_leaves_least_of_the_targets_is_chosen():
    def arenas(contestant: str, target: tuple[int, int], kept: tuple[int, int]) -> list[Result]:
        names = [f"look-alikes-{told}-{number}" for number in range(3) for told in ("told", "hidden")]
        return [result(s, target[s], kept[s], contestant, arena=name) for name in names for s in (0, 1)]

    best, near = arenas("uce", (1, 1), (10, 8)), arenas("uce a=1", (0, 0), (8, 9))
    far = arenas("uce a=2", (0, 0), (5, 5))
    chosen = {choice.contestant for choice in leave_one_fold_out(summarize([*best, *near, *far]))}
    assert chosen == {"uce a=1"}
    certain = arenas("uce", (1, 1), (10, 10))  # without spread nothing is within an error of it
    assert {choice.contestant for choice in leave_one_fold_out(summarize([*certain, *near, *far]))} == {"uce"}
