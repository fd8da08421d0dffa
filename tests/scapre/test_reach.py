"""Strengths that carry every target's answer equally far, checked against responses written out row by row."""

import dataclasses

import pytest
import torch
from torch import Tensor

from scapre import SingularSystemError
from scapre.methods import Problem
from scapre.methods.reach import WIDEST, carry_equally
from scapre.moments import NameEnds
from scapre.solver import Regularizer, factorize
from tests.scapre.problems import WIDTH, problem_of, solve

ANSWERS = {"balance": "answers", "ridge": 0.3, "erasure_strength": 1}


def crowd() -> Problem:
    """Twelve targets in a space of few dimensions, in each other's way."""
    return problem_of(targets=12, found=20)


def test_a_system_that_is_singular_is_refused_in_words() -> None:
    with pytest.raises(SingularSystemError, match="lower erasure_strength"):
        solve(problem_of(width=64), "scapre", balance="answers", erasure_strength=1e18)


def gone(problem: Problem, delta: Tensor) -> list[float]:
    """p as the docstring defines it: rows, features and names one at a time."""
    ends, found = problem.statistics.ends, []
    for own in ends.targets:
        before = problem.base @ own
        moved = delta @ own
        ways = [problem.base @ other - before for other in ends.retained]
        found.append(max(float(moved @ way) / float(way @ way) for way in ways))
    return found


def test_what_is_told_is_what_the_rows_do() -> None:
    problem = crowd()
    solution = solve(problem, "scapre", **ANSWERS)
    told = list(solution.diagnostics["answers_gone"].values())
    torch.testing.assert_close(told, gone(problem, solution.delta), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("aim", [0.4, 0.6])
def test_every_target_goes_as_far_as_asked(aim: float) -> None:
    problem = crowd()
    carried = torch.tensor(gone(problem, solve(problem, "scapre", reach=aim, **ANSWERS).delta))
    assert float((carried - aim).abs().mean()) < 0.03
    # the control: without it they part
    left_alone = torch.tensor(gone(problem, solve(problem, "scapre", ridge=0.3, erasure_strength=1).delta))
    assert float(left_alone.std()) > 2 * float(carried.std())


def test_strengths_stay_near_where_they_start() -> None:
    problem, eye = crowd(), torch.eye(WIDTH, dtype=torch.float64)
    start = torch.linspace(0.0, 2.0, 12, dtype=torch.float64)

    def carried(regularizer: Regularizer) -> Tensor:
        moment = problem.base.mT @ problem.base
        return carry_equally(moment, regularizer, problem.statistics, start=start, aim=0.7).strengths

    torch.testing.assert_close(carried(factorize(1e9 * eye)), start * WIDEST)  # nothing ever moves
    loose = carried(factorize(0.3 * eye))
    assert bool((loose <= start * WIDEST).all())
    assert bool((loose >= start / WIDEST).all())
    assert float(loose[0]) == 0.0
    assert not torch.equal(loose, start)


def test_a_name_that_answers_like_the_target_is_no_way_to_go() -> None:
    problem = crowd()
    ends = problem.statistics.ends
    same = NameEnds(ends.targets, torch.cat([ends.retained, ends.targets[:1]]))
    twins = Problem(problem.base, problem.parts, dataclasses.replace(problem.statistics, ends=same))
    first, second = (solve(p, "scapre", **ANSWERS).diagnostics["answers_gone"]["concept 0"] for p in (problem, twins))
    assert second == pytest.approx(first, abs=0.02)
