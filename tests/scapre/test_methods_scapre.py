"""The default method: equal to its formula, and every component of it can be switched off."""

import dataclasses
import functools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scapre import geometry, row_systems
from scapre.decoupler import HALF_INFORMATION
from scapre.methods import Problem, find_method
from scapre.methods.scapre import row_weights
from scapre.moments import GROUP_SHARES
from tests.scapre.problems import ROWS, WIDTH, assert_close, naive_rows, problem_of, solve

LN2 = math.log(2.0)
EVERYTHING_OFF = {"row_weights": "uniform", "conflict_strength": 0, "geometry": 0, "retention_strength": 0}


def naive_weights(problem: Problem, floor: float = 0.0) -> Tensor:
    contrasts = torch.zeros(len(problem.base), len(problem.statistics.targets), dtype=torch.float64)
    for k, target in enumerate(problem.statistics.targets):
        for i, row in enumerate(problem.base):
            apart = [
                sum(
                    float(w) * float(row @ (c - e)) ** 2
                    for w, c, e in zip(target.weights, target.features, n, strict=True)
                )
                for n in target.neutrals
            ]
            contrasts[i, k] = math.sqrt(min(apart)) / float(row.norm())
    ordered = sorted(contrasts.flatten().tolist())
    noise = ordered[(len(ordered) - 1) // 2] / HALF_INFORMATION
    weights = torch.zeros_like(contrasts)
    for i, found in enumerate(contrasts.tolist()):
        for k, value in enumerate(found):
            hit = 0.5 * (1 + math.erf(value / noise / 2 / math.sqrt(2)))
            entropy = -sum(p * math.log(p) for p in (hit, 1 - hit) if p > 0)
            weights[i, k] = LN2 - entropy
    for rows in ROWS.values():
        weights[rows] /= weights[rows].max(dim=0).values
    return torch.where(weights < floor, 0.0, weights)


def naive_scapre(problem: Problem, *, ridge: float, kept: float, strength: float, alpha: Tensor) -> Tensor:
    retained = problem.statistics.retained
    moment = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for group, share in retained.shares.items():
        for feature in retained.features[group]:
            moment += share / retained.counts[group] * torch.outer(feature, feature)
    gram = kept * moment + ridge * float(moment.trace()) / WIDTH * torch.eye(WIDTH, dtype=torch.float64)
    gains = []
    for target in problem.statistics.targets:
        slots = target.features.mT @ (target.weights[:, None] * target.features)
        gains.append(float(torch.linalg.eigvals(torch.linalg.solve(gram, slots)).real.max()))
    strengths = strength / torch.tensor(gains, dtype=torch.float64)
    return naive_rows(problem.base, gram, problem.statistics.targets, strengths * alpha) - problem.base


@given(seed=st.integers(0, 200), ridge=st.floats(1e-3, 1.0), kept=st.floats(0.1, 50.0), strength=st.floats(0.01, 100.0))
def test_scapre_equals_its_formula(seed: int, ridge: float, kept: float, strength: float) -> None:
    problem = problem_of(seed)
    dials = {"ridge": ridge, "retention_strength": kept, "erasure_strength": strength}
    naive = functools.partial(naive_scapre, problem, ridge=ridge, kept=kept, strength=strength)
    ones = torch.ones(len(problem.base), len(problem.statistics.targets), dtype=torch.float64)
    assert_close(solve(problem, "scapre", **dials).delta, naive(alpha=ones), 1e-8)
    assert_close(solve(problem, "scapre", rank=99, **dials).delta, naive(alpha=ones), 1e-8)
    decoupled = solve(problem, "scapre", row_weights="per_target", rank=99, floor=0.2, **dials).delta
    assert_close(decoupled, naive(alpha=naive_weights(problem, floor=0.2)), 1e-8)


def test_many_targets_are_solved_to_the_tolerance_and_the_approximation_stays_close() -> None:
    problem = problem_of(targets=40, found=60)
    exact = naive_scapre(problem, ridge=0.01, kept=30.0, strength=5.0, alpha=solve_weights(problem))
    every = solve(problem, "scapre", ridge=0.01, row_weights="per_target", rank=99, own_directions=99)
    assert every.diagnostics["solver_error"] <= row_systems.TOLERANCE[torch.float32]
    assert_close(every.delta, exact, 3e-3)
    few = solve(problem, "scapre", ridge=0.01, row_weights="per_target", rank=99)
    assert few.diagnostics["own_directions"] == 1
    assert 1e-3 < float((few.delta - exact).norm() / exact.norm()) < 0.1
    uniform = solve(problem, "scapre", ridge=0.01).delta
    assert float((uniform - exact).norm() / exact.norm()) > 0.1  # the control: row weights matter


def solve_weights(problem: Problem) -> Tensor:
    """Returns α as the method itself measures it, which for many targets is not to the last digit."""
    return row_weights(problem, find_method("scapre").resolve({"row_weights": "per_target", "rank": 99}))[0].double()


def with_targets(problem: Problem, change: Callable) -> Problem:
    targets = tuple(change(target) for target in problem.statistics.targets)
    statistics = dataclasses.replace(problem.statistics, targets=targets)
    return Problem(problem.base, problem.parts, statistics)


def other_neutrals(problem: Problem) -> Problem:
    return with_targets(problem, lambda t: dataclasses.replace(t, neutrals=(t.neutrals[0].flip(0) + 1.0,)))


def other_retained(problem: Problem) -> Problem:
    """Turns the retained text another way; its energy stays."""
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q
    retained = problem.statistics.retained
    turned = dataclasses.replace(retained, sums={group: turn @ s @ turn.mT for group, s in retained.sums.items()})
    statistics = dataclasses.replace(problem.statistics, retained=turned)
    return Problem(problem.base, problem.parts, statistics)


@pytest.mark.parametrize(
    ("on", "off", "elsewhere"),
    [
        ({"row_weights": "per_target"}, {"row_weights": "uniform"}, other_neutrals),
        ({"row_weights": "shared"}, {"row_weights": "uniform"}, other_neutrals),
        ({"row_weights": "uniform", "conflict_strength": 0.5}, {"row_weights": "uniform"}, other_neutrals),
        ({"retention_strength": 30.0}, {"retention_strength": 0}, other_retained),
    ],
    ids=["decoupler", "shared decoupler", "conflict gate", "retention moment"],
)
def test_what_is_switched_off_has_no_say(on: dict, off: dict, elsewhere: Callable[[Problem], Problem]) -> None:
    problem = problem_of()
    other = elsewhere(problem)

    def differs(dials: dict) -> bool:
        first, second = (solve(p, "scapre", **dials).delta for p in (problem, other))
        return float((first - second).norm()) > 1e-8 * float(first.norm())

    assert differs(on)
    assert not differs(off)


def test_geometry_switched_off_leaves_the_solution_as_it_is() -> None:
    problem = problem_of()
    plain, aligned = (solve(problem, "scapre", geometry=value).delta for value in (0, 0.5))
    assert not torch.equal(plain, aligned)
    assert torch.equal(geometry.align_projections(problem.base, plain, ROWS, strength=0.0), plain)
    assert_close(geometry.align_projections(problem.base, plain, ROWS, strength=0.5), aligned)


@given(seed=st.integers(0, 200), strength=st.floats(0.01, 100.0))
def test_with_everything_off_it_is_plain_least_squares(seed: int, strength: float) -> None:
    problem = problem_of(seed)
    ones = torch.ones(len(problem.base), 3, dtype=torch.float64)
    expected = naive_scapre(problem, ridge=0.01, kept=0.0, strength=strength, alpha=ones)
    assert_close(
        solve(problem, "scapre", ridge=0.01, erasure_strength=strength, **EVERYTHING_OFF).delta, expected, 1e-8
    )


EVERY_CHANNEL: list[dict[str, float | str]] = [
    {"row_weights": "uniform"},
    {"row_weights": "shared", "noise": 1e-6},
    {"row_weights": "per_target", "noise": 1e-6},
]


@pytest.mark.parametrize("every_channel", EVERY_CHANNEL, ids=lambda dials: str(dials["row_weights"]))
@pytest.mark.parametrize("strength", [0.5, 12.0])
def test_every_target_keeps_the_same_share_however_much_of_it_is_retained(every_channel: dict, strength: float) -> None:
    """Targets that do not meet in G0⁻¹, one of them a hundred times as much retained text as the other."""
    axes = torch.eye(WIDTH, dtype=torch.float64)
    problem = problem_of(targets=2)
    retained = dataclasses.replace(
        problem.statistics.retained, sums={group: torch.diag(1 + 99 * axes[0]) for group in GROUP_SHARES}
    )
    slots = iter((axes[:1], axes[1:2]))
    one = torch.ones(1, dtype=torch.float64)
    targets = with_targets(
        problem,
        lambda t: dataclasses.replace(t, features=next(slots), anchors=axes[2:3], neutrals=(axes[3:4],), weights=one),
    ).statistics.targets
    problem = Problem(
        problem.base, problem.parts, dataclasses.replace(problem.statistics, targets=targets, retained=retained)
    )
    wanted = problem.base[:, :2] - problem.base[:, 2:3]

    def kept(**dials: float | str) -> Tensor:
        after = (problem.base + solve(problem, "scapre", erasure_strength=strength, **every_channel, **dials).delta)[
            :, :2
        ]
        return (after - problem.base[:, 2:3]) / wanted

    torch.testing.assert_close(kept(), torch.full_like(wanted, 1 / (1 + strength)), rtol=1e-3, atol=0)
    uneven = kept(balance="none").mean(dim=0)
    assert float(uneven[0]) > 1.5 * float(uneven[1])  # the control


def test_number_of_own_directions_can_be_chosen() -> None:
    dials = {"row_weights": "per_target", "rank": 3}
    found = [solve(problem_of(targets=8), "scapre", own_directions=own, **dials) for own in (1, 2, 3, 99)]
    assert [solution.diagnostics["own_directions"] for solution in found] == [1, 2, 3, 3]
    assert torch.equal(found[2].delta, found[3].delta)
    assert not torch.equal(found[0].delta, found[1].delta)


@pytest.mark.parametrize("row_weights", ["uniform", "per_target"])
def test_the_edit_has_as_many_directions_as_targets_times_rank(row_weights: str) -> None:
    for rank in (1, 2):
        delta = solve(problem_of(targets=3), "scapre", row_weights=row_weights, rank=rank).delta
        assert int(torch.linalg.matrix_rank(delta, rtol=1e-9)) == 3 * rank
    assert int(torch.linalg.matrix_rank(solve(problem_of(targets=3), "scapre").delta, rtol=1e-9)) > 6  # the control
