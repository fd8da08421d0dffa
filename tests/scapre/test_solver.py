"""The theorem: the stated objective has zero gradient at the solution, whatever the numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scapre import solver
from scapre.errors import SingularSystemError

D_IN, ROWS = 7, 5


def random_targets(seed: int, count: int, slots: int) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]], Tensor]:
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    retained = normal(20, D_IN)
    gram = retained.mT @ retained / 20 + 0.1 * torch.eye(D_IN, dtype=torch.float64)
    targets = []
    for _ in range(count):
        weights = torch.rand(slots, generator=source, dtype=torch.float64) + 0.1
        targets.append((normal(slots, D_IN), normal(slots, D_IN), weights / weights.sum()))
    return gram, targets, normal(ROWS, D_IN)


def objective(weight: Tensor, base: Tensor, gram: Tensor, targets: list, alpha: Tensor) -> Tensor:
    change = weight - base
    value = torch.einsum("ij,jk,ik->", change, gram, change)
    for column, (features, anchors, omega) in enumerate(targets):
        gap = weight @ features.mT - base @ anchors.mT
        value = value + (alpha[:, column : column + 1] * omega * gap.square()).sum()
    return value


def naive(base: Tensor, gram: Tensor, targets: list, alpha: Tensor) -> Tensor:
    rows = []
    for i in range(len(base)):
        system, right = gram.clone(), gram @ base[i]
        for column, (features, anchors, omega) in enumerate(targets):
            for slot in range(len(omega)):
                scale = alpha[i, column] * omega[slot]
                system += scale * torch.outer(features[slot], features[slot])
                right += scale * (base[i] @ anchors[slot]) * features[slot]
        rows.append(torch.linalg.solve(system, right))
    return torch.stack(rows)


def moments(targets: list) -> tuple[Tensor, Tensor]:
    zero = torch.zeros(D_IN, D_IN, dtype=torch.float64)
    slots = sum((c.mT @ (w[:, None] * c) for c, _, w in targets), start=zero)
    shift = sum(((a - c).mT @ (w[:, None] * c) for c, a, w in targets), start=zero)
    return slots, shift


def solve_shared(base: Tensor, gram: Tensor, targets: list, alpha: Tensor) -> Tensor:
    slots, shift = moments(targets)
    return solver.solve_shared_rows(base, solver.factorize(gram), slots=slots, shift=shift, row_weights=alpha)


def solve_per_target(base: Tensor, gram: Tensor, targets: list, alpha: Tensor, rank: int = 99) -> Tensor:
    regularizer = solver.factorize(gram)
    factors = [solver.compress_slots(regularizer, features=c, anchors=a, weights=w, rank=rank) for c, a, w in targets]
    return solver.solve_rows_per_target(base, regularizer, factors=factors, row_weights=alpha)


problems = {
    "seed": st.integers(0, 10_000),
    "count": st.integers(1, 4),
    "slots": st.integers(1, 9),
    "strength": st.floats(1e-3, 1e4),
}


@given(**problems)
def test_shared_rows_minimize_the_stated_objective(seed: int, count: int, slots: int, strength: float) -> None:
    gram, targets, base = random_targets(seed, count, slots)
    alpha = strength * torch.rand(ROWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    delta = solve_shared(base, gram, targets, alpha)
    repeated = alpha.unsqueeze(1).expand(-1, count)
    weight = (base + delta).requires_grad_(True)
    gradient = torch.autograd.grad(objective(weight, base, gram, targets, repeated), weight)[0]
    before = base.clone().requires_grad_(True)
    start = torch.autograd.grad(objective(before, base, gram, targets, repeated), before)[0]
    assert gradient.norm() < 1e-9 * start.norm()
    torch.testing.assert_close(base + delta, naive(base, gram, targets, repeated), rtol=1e-9, atol=1e-9)


@given(**problems)
def test_rows_per_target_minimize_the_stated_objective(seed: int, count: int, slots: int, strength: float) -> None:
    gram, targets, base = random_targets(seed, count, slots)
    alpha = strength * torch.rand(ROWS, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    delta = solve_per_target(base, gram, targets, alpha)
    weight = (base + delta).requires_grad_(True)
    gradient = torch.autograd.grad(objective(weight, base, gram, targets, alpha), weight)[0]
    before = base.clone().requires_grad_(True)
    start = torch.autograd.grad(objective(before, base, gram, targets, alpha), before)[0]
    assert gradient.norm() < 1e-8 * start.norm()
    torch.testing.assert_close(base + delta, naive(base, gram, targets, alpha), rtol=1e-8, atol=1e-8)


@given(seed=problems["seed"], count=problems["count"])
def test_both_solvers_agree_when_targets_share_row_weights(seed: int, count: int) -> None:
    gram, targets, base = random_targets(seed, count, 4)
    alpha = torch.rand(ROWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shared = solve_shared(base, gram, targets, alpha)
    repeated = solve_per_target(base, gram, targets, alpha.unsqueeze(1).expand(-1, count))
    torch.testing.assert_close(shared, repeated, rtol=1e-9, atol=1e-10)


@given(seed=problems["seed"])
def test_order_of_targets_is_irrelevant(seed: int) -> None:
    gram, targets, base = random_targets(seed, 3, 4)
    alpha = torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turned = solve_per_target(base, gram, targets[::-1], alpha.flip(1))
    torch.testing.assert_close(solve_per_target(base, gram, targets, alpha), turned, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solve", [solve_shared, solve_per_target])
def test_rows_of_weight_zero_do_not_move_at_all(solve) -> None:
    gram, targets, base = random_targets(3, 2, 4)
    alpha = torch.tensor([0.0, 1.0, 0.0, 1e6, 0.5], dtype=torch.float64)
    delta = solve(base, gram, targets, alpha if solve is solve_shared else alpha.unsqueeze(1).expand(-1, 2))
    assert not delta[[0, 2]].any()
    assert delta[[1, 3, 4]].all()


def test_no_targets_no_change() -> None:
    gram, _, base = random_targets(1, 0, 1)
    assert not solve_per_target(base, gram, [], torch.zeros(ROWS, 0, dtype=torch.float64)).any()
    assert not solve_shared(base, gram, [], torch.ones(ROWS, dtype=torch.float64)).any()


def test_large_row_weights_erase_exactly() -> None:
    gram, targets, base = random_targets(5, 1, 2)
    features, anchors, _ = targets[0]
    before = base @ features.mT - base @ anchors.mT
    weight = base + solve_per_target(base, gram, targets, torch.full((ROWS, 1), 1e12, dtype=torch.float64))
    assert (weight @ features.mT - base @ anchors.mT).norm() < 1e-9 * before.norm()


def test_compression_keeps_what_matters_most() -> None:
    gram, targets, base = random_targets(7, 1, 6)
    alpha = torch.ones(ROWS, 1, dtype=torch.float64)
    values = [
        float(objective(base + solve_per_target(base, gram, targets, alpha, rank), base, gram, targets, alpha))
        for rank in (1, 3, 6)
    ]
    start = float(objective(base, base, gram, targets, alpha))
    assert values[2] <= values[1] < start
    assert values[2] <= values[0]


@pytest.mark.parametrize(
    "matrix", [torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 1.0, -1e-3])), torch.full((3, 3), torch.nan)]
)
def test_singular_regularizer_is_named_with_advice(matrix: Tensor) -> None:
    with pytest.raises(SingularSystemError, match=r"raise the dial ridge|text encoder"):
        solver.factorize(matrix.double())
