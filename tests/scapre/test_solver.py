"""The theorem: the stated objective has zero gradient at the solution, whatever the numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scapre import solver
from scapre.errors import SingularSystemError
from tests.scapre.problems import naive_rows, objective, random_targets

D_IN, ROWS = 7, 5


def moments(targets: list) -> tuple[Tensor, Tensor]:
    zero = torch.zeros(D_IN, D_IN, dtype=torch.float64)
    slots = sum((t.features.mT @ (t.weights[:, None] * t.features) for t in targets), start=zero)
    shift = sum(((t.anchors - t.features).mT @ (t.weights[:, None] * t.features) for t in targets), start=zero)
    return slots, shift


def solve_shared(base: Tensor, gram: Tensor, targets: list, alpha: Tensor) -> Tensor:
    slots, shift = moments(targets)
    return solver.solve_shared_rows(base, solver.factorize(gram), slots=slots, shift=shift, row_weights=alpha)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 4), slots=st.integers(1, 9), strength=st.floats(1e-3, 1e4))
def test_shared_rows_minimize_the_stated_objective(seed: int, count: int, slots: int, strength: float) -> None:
    gram, targets, base = random_targets(seed, count=count, slots=slots, width=D_IN, rows=ROWS)
    alpha = strength * torch.rand(ROWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    delta = solve_shared(base, gram, targets, alpha)
    repeated = alpha.unsqueeze(1).expand(-1, count)
    weight = (base + delta).requires_grad_(True)
    gradient = torch.autograd.grad(objective(weight, base, gram, targets, repeated).sum(), weight)[0]
    before = base.clone().requires_grad_(True)
    start = torch.autograd.grad(objective(before, base, gram, targets, repeated).sum(), before)[0]
    assert gradient.norm() < 1e-9 * start.norm()
    torch.testing.assert_close(base + delta, naive_rows(base, gram, targets, repeated), rtol=1e-9, atol=1e-9)


def test_rows_of_weight_zero_do_not_move_at_all() -> None:
    gram, targets, base = random_targets(3, count=2, slots=4, width=D_IN, rows=ROWS)
    delta = solve_shared(base, gram, targets, torch.tensor([0.0, 1.0, 0.0, 1e6, 0.5], dtype=torch.float64))
    assert not delta[[0, 2]].any()
    assert delta[[1, 3, 4]].all()


@given(seed=st.integers(0, 10_000), count=st.integers(0, 4), slots=st.integers(1, 9), strength=st.floats(1e-3, 1e4))
def test_the_shared_map_is_the_answer_of_rows_that_all_weigh_one(
    seed: int, count: int, slots: int, strength: float
) -> None:
    gram, targets, base = random_targets(seed, count=count, slots=slots, width=D_IN, rows=ROWS)
    moment, shift = (strength * one for one in moments(targets))
    found = base @ solver.shared_map(solver.factorize(gram), slots=moment, shift=shift)
    expected = solve_shared(base, gram, targets, torch.full((ROWS,), strength, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_a_map_that_is_not_finite_is_refused() -> None:
    gram, targets, _ = random_targets(3, count=2, slots=4, width=D_IN, rows=ROWS)
    moment, shift = moments(targets)
    for factor in (1e308, float("nan")):
        with pytest.raises(SingularSystemError, match="lower erasure_strength"):
            solver.shared_map(solver.factorize(gram), slots=factor * moment, shift=factor * shift)


def test_no_targets_no_change() -> None:
    gram, _, base = random_targets(1, count=0, slots=1, width=D_IN, rows=ROWS)
    assert not solve_shared(base, gram, [], torch.ones(ROWS, dtype=torch.float64)).any()


@given(seed=st.integers(0, 10_000))
def test_sylvester_equation_holds(seed: int) -> None:
    gram, _, right = random_targets(seed, count=0, slots=1, width=D_IN, rows=ROWS)
    alpha = 3.0 * torch.rand(ROWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    delta = solver.solve_sylvester(right, gram, alpha)
    torch.testing.assert_close(alpha.unsqueeze(1) * delta + delta @ gram, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shifts", [(1.4, 1.41, 1.45), (0.1, 5.0), (2.0,), (1e-3, 1.0, 1e3)])
def test_shifted_inverses_invert_every_shift(shifts: tuple[float, ...]) -> None:
    gram, _, _ = random_targets(0, count=0, slots=1, width=D_IN, rows=ROWS)
    found = solver.shifted_inverses(gram, torch.tensor(shifts, dtype=torch.float64))
    thin = torch.randn(D_IN, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solved = found.times(thin)
    for place, shift in enumerate(shifts):
        inverse, expected = found.inverse(place), torch.eye(D_IN, dtype=torch.float64)
        torch.testing.assert_close(inverse @ solver.add_ridge(gram, shift), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(solved[place], inverse @ thin, rtol=1e-10, atol=1e-12)


@given(seed=st.integers(0, 10_000), rank=st.integers(0, 7))
def test_factors_and_bases_have_the_rank_of_their_matrix(seed: int, rank: int) -> None:
    source = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(D_IN, rank, generator=source, dtype=torch.float64) for _ in range(2))
    first, second = solver.thin_factors(left @ right.mT)
    assert first.shape[1] == rank
    torch.testing.assert_close(first @ second, left @ right.mT, rtol=1e-12, atol=1e-12)
    basis = solver.orthonormal_basis(left)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(basis @ (basis.mT @ left), left, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "matrix", [torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 1.0, -1e-3])), torch.full((3, 3), torch.nan)]
)
def test_singular_regularizer_is_named_with_advice(matrix: Tensor) -> None:
    with pytest.raises(SingularSystemError, match=r"raise the dial ridge|text encoder"):
        solver.factorize(matrix.double())
