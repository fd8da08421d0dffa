"""Responses from second moments equal responses from rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scapre.responses import ResponseMoments
from tests.scapre.problems import problem_of, solve


@given(seed=st.integers(0, 500), strength=st.floats(1e-3, 1e3))
def test_shares_equal_those_of_the_rows(seed: int, strength: float) -> None:
    problem = problem_of(seed)
    base, delta = problem.base, solve(problem, "scapre", erasure_strength=strength).delta
    moments = ResponseMoments.of(base, delta)
    for target in problem.statistics.targets:
        gap = (base @ (target.features - target.anchors).mT).square().sum(dim=0) @ target.weights
        left = (base @ (target.features - target.anchors).mT + delta @ target.features.mT).square().sum(dim=0)
        assert moments.residual(target) == pytest.approx(float((left @ target.weights / gap).sqrt()), rel=1e-6)
        apart = (base @ (target.features - target.neutrals[0]).mT).square().sum(dim=0) @ target.weights
        moved = (delta @ target.neutrals[0].mT).square().sum(dim=0) @ target.weights
        assert moments.neighbour_change(target) == pytest.approx(float((moved / apart).sqrt()), rel=1e-6)


@pytest.mark.parametrize("method", ["scapre", "uce", "rece", "speed"])
def test_one_map_of_all_rows_tells_what_the_rows_would(method: str) -> None:
    problem = problem_of()
    solution = solve(problem, method)
    assert solution.shared_map is not None
    torch.testing.assert_close(problem.base @ solution.shared_map, solution.delta)
    rows = ResponseMoments.of(problem.base, solution.delta)
    mapped = ResponseMoments.of_map(rows.base, solution.shared_map)
    for found, expected in ((mapped.cross, rows.cross), (mapped.change, rows.change)):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("dials", [{"row_weights": "per_target"}, {"row_weights": "shared"}, {"geometry": 0.5}])
def test_rows_that_are_treated_each_by_itself_have_no_map(dials: dict) -> None:
    assert solve(problem_of(), "scapre", **dials).shared_map is None


def test_no_change_leaves_everything() -> None:
    problem = problem_of()
    moments = ResponseMoments.of(problem.base, torch.zeros_like(problem.base))
    assert [moments.residual(target) for target in problem.statistics.targets] == pytest.approx([1.0] * 3)
    assert [moments.neighbour_change(target) for target in problem.statistics.targets] == [0.0] * 3


def test_target_and_anchor_alike_count_as_forgotten() -> None:
    problem = problem_of()
    moments = ResponseMoments.of(torch.zeros_like(problem.base), torch.zeros_like(problem.base))
    assert moments.residual(problem.statistics.targets[0]) == 0.0
