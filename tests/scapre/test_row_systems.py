"""Row weights per target: the stated objective is minimized, by either way, to the stated tolerance."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scapre import row_systems, solver
from scapre.moments import TargetSlots
from scapre.row_systems import RowSolution
from tests.scapre.problems import naive_rows, objective, random_targets

ROWS = 6


def weights_of(seed: int, rows: int, count: int, strength: float = 1.0) -> Tensor:
    return strength * torch.rand(rows, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(
    base: Tensor, gram: Tensor, targets: list[TargetSlots], alpha: Tensor, *, rank: int = 99, own: int = 99
) -> RowSolution:
    regularizer = solver.factorize(gram)
    factors = row_systems.compress_slots(regularizer, targets, rank=rank)
    return row_systems.solve_rows_per_target(base, regularizer, factors=factors, row_weights=alpha, own=own)


def energy_error(found: Tensor, base: Tensor, gram: Tensor, targets: list[TargetSlots], alpha: Tensor) -> Tensor:
    """Returns each row's ‖δ − δ*‖ / ‖δ*‖ in the norm of its objective, δ* from the loops."""
    exact = naive_rows(base, gram, targets, alpha) - base
    errors = []
    for i in range(len(base)):
        system = gram + sum(
            alpha[i, k] * t.features.mT @ (t.weights[:, None] * t.features) for k, t in enumerate(targets)
        )
        gap = found[i] - exact[i]
        errors.append(((gap @ system @ gap) / (exact[i] @ system @ exact[i])).sqrt())
    return torch.stack(errors)


@given(seed=st.integers(0, 10_000), count=st.sampled_from([4, 60]), slots=st.integers(1, 6))
def test_gains_are_exact_however_many_targets(seed: int, count: int, slots: int) -> None:
    gram, targets, _ = random_targets(seed, count=count, slots=slots, width=24, rows=ROWS)
    regularizer = solver.factorize(gram)
    whitened = [torch.linalg.solve(regularizer.factor, (t.weights.sqrt() * t.features.mT)) for t in targets]
    exact = torch.stack([torch.linalg.matrix_norm(columns, 2) ** 2 for columns in whitened])
    for gains in (
        row_systems.slot_gains(regularizer, targets),
        row_systems.compress_slots(regularizer, targets, rank=1).gains,
    ):
        torch.testing.assert_close(gains, exact, rtol=1e-11, atol=0)
    if count > len(gram) and slots > 1:  # the control: what is chosen in float32, and not measured again, is far off
        rounded = torch.stack([torch.linalg.matrix_norm(columns.float(), 2) ** 2 for columns in whitened]).double()
        assert float(((rounded - exact) / exact).abs().max()) > 1e-9


@given(seed=st.integers(0, 10_000), count=st.integers(1, 4), slots=st.integers(1, 9), strength=st.floats(1e-3, 1e4))
def test_few_unknowns_minimize_the_stated_objective(seed: int, count: int, slots: int, strength: float) -> None:
    gram, targets, base = random_targets(seed, count=count, slots=slots, width=7, rows=ROWS)
    alpha = weights_of(seed, ROWS, count, strength)
    found = solve(base, gram, targets, alpha)
    assert found.error == found.iterations == 0  # one factorization per row
    weight = (base + found.delta).requires_grad_(True)
    gradient = torch.autograd.grad(objective(weight, base, gram, targets, alpha).sum(), weight)[0]
    before = base.clone().requires_grad_(True)
    start = torch.autograd.grad(objective(before, base, gram, targets, alpha).sum(), before)[0]
    assert gradient.norm() < 1e-8 * start.norm()
    torch.testing.assert_close(base + found.delta, naive_rows(base, gram, targets, alpha), rtol=1e-8, atol=1e-8)


@given(
    seed=st.integers(0, 10_000),
    count=st.sampled_from([17, 30, 60]),  # 51 unknowns in float64; 90 and 180 of 60 dimensions in float32
    strength=st.floats(1e-2, 1e3),
)
def test_many_unknowns_are_exact_to_the_stated_tolerance(seed: int, count: int, strength: float) -> None:
    gram, targets, base = random_targets(seed, count=count, slots=3, width=60, rows=ROWS)
    alpha = weights_of(seed, ROWS, count, strength)
    found = solve(base, gram, targets, alpha, own=3)
    tolerance = row_systems.TOLERANCE[torch.float64 if count == 17 else torch.float32]
    assert 0 < found.iterations <= row_systems.MOST_ITERATIONS
    assert found.error <= tolerance
    errors = energy_error(found.delta, base, gram, targets, alpha)
    assert float(errors.max()) <= 3.0 * tolerance  # the estimate is not a bound, but it is never far off
    best = objective(naive_rows(base, gram, targets, alpha), base, gram, targets, alpha)
    reached, start = (objective(base + d, base, gram, targets, alpha) for d in (found.delta, torch.zeros_like(base)))
    assert bool((reached - best <= 10 * tolerance**2 * (start - best) + 1e-9 * best).all())
    assert bool((start - best > 0.05 * best).all())  # the control: there was something to gain


def test_the_tolerance_is_not_met_by_the_first_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    gram, targets, base = random_targets(0, count=60, slots=3, width=60, rows=ROWS)
    alpha = weights_of(0, ROWS, 60)
    monkeypatch.setitem(row_systems.TOLERANCE, torch.float32, 1.0)
    found = solve(base, gram, targets, alpha, own=3)
    assert found.iterations == 0
    assert float(energy_error(found.delta, base, gram, targets, alpha).max()) > 1e-2


@pytest.mark.parametrize("count", [17, 60])
def test_rows_that_do_not_converge_are_factorized(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    gram, targets, base = random_targets(1, count=count, slots=3, width=60, rows=ROWS)
    alpha = weights_of(1, ROWS, count)
    monkeypatch.setattr(row_systems, "MOST_ITERATIONS", 1)
    found = solve(base, gram, targets, alpha, own=3)
    assert found.iterations == 1
    assert float(energy_error(found.delta, base, gram, targets, alpha).max()) < 1e-5


@given(seed=st.integers(0, 10_000))
def test_both_ways_agree(seed: int) -> None:
    gram, targets, base = random_targets(seed, count=8, slots=5, width=60, rows=ROWS)
    alpha = weights_of(seed, ROWS, 8)
    direct = solve(base, gram, targets, alpha)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_systems, "DIRECT_UNKNOWNS", 0)
        iterated = solve(base, gram, targets, alpha)
    assert iterated.iterations > direct.iterations == 0
    assert (iterated.delta - direct.delta).norm() < 1e-6 * direct.delta.norm()


@given(seed=st.integers(0, 10_000), own=st.integers(1, 2))
def test_directions_without_weights_of_their_own_share_the_mean(seed: int, own: int) -> None:
    gram, targets, base = random_targets(seed, count=5, slots=4, width=20, rows=ROWS)
    alpha = weights_of(seed, ROWS, 5)
    regularizer = solver.factorize(gram)
    factors = row_systems.compress_slots(regularizer, targets, rank=4)
    split, columns = [], []
    for k in range(5):  # every direction becomes a target of its own, with the weight it must have
        for j in range(4):
            one = torch.ones(1, dtype=torch.float64)
            split.append(
                TargetSlots(targets[k].placed, factors.features[k, j : j + 1], factors.anchors[k, j : j + 1], one, ())
            )
            columns.append(alpha[:, k] if j < own else alpha.mean(dim=1))
    expected = naive_rows(base, gram, split, torch.stack(columns, dim=1)) - base
    found = solve(base, gram, targets, alpha, rank=4, own=own)
    assert (found.delta - expected).norm() < 1e-7 * expected.norm()


@given(seed=st.integers(0, 10_000), count=st.sampled_from([3, 30]))
def test_order_of_targets_is_irrelevant(seed: int, count: int) -> None:
    gram, targets, base = random_targets(seed, count=count, slots=4, width=60, rows=ROWS)
    alpha = weights_of(seed, ROWS, count)
    turned = solve(base, gram, targets[::-1], alpha.flip(1)).delta
    straight = solve(base, gram, targets, alpha).delta
    assert (turned - straight).norm() < (1e-9 if count == 3 else 3e-3) * straight.norm()


@pytest.mark.parametrize("count", [2, 30])
def test_rows_of_weight_zero_do_not_move_at_all(count: int) -> None:
    gram, targets, base = random_targets(3, count=count, slots=4, width=60, rows=5)
    alpha = torch.tensor([0.0, 1.0, 0.0, 1e6, 0.5], dtype=torch.float64).unsqueeze(1).expand(-1, count)
    delta = solve(base, gram, targets, alpha.clone()).delta
    assert not delta[[0, 2]].any()
    assert delta[[1, 3, 4]].all()


def test_large_row_weights_erase_exactly() -> None:
    gram, targets, base = random_targets(5, count=1, slots=2, width=7, rows=ROWS)
    before = base @ (targets[0].features - targets[0].anchors).mT
    weight = base + solve(base, gram, targets, torch.full((ROWS, 1), 1e12, dtype=torch.float64)).delta
    assert (weight @ targets[0].features.mT - base @ targets[0].anchors.mT).norm() < 1e-9 * before.norm()


def test_compression_keeps_what_matters_most() -> None:
    gram, targets, base = random_targets(7, count=1, slots=6, width=7, rows=ROWS)
    alpha = torch.ones(ROWS, 1, dtype=torch.float64)
    values = [
        float(objective(base + solve(base, gram, targets, alpha, rank=rank).delta, base, gram, targets, alpha).sum())
        for rank in (1, 3, 6)
    ]
    start = float(objective(base, base, gram, targets, alpha).sum())
    assert values[2] <= values[1] < start
    assert values[2] <= values[0]


def test_slots_of_different_number_are_compressed_alike() -> None:
    gram, short, base = random_targets(0, count=1, slots=2, width=7, rows=ROWS)
    _, long, _ = random_targets(1, count=1, slots=5, width=7, rows=ROWS)
    alpha = weights_of(0, ROWS, 2)
    found = solve(base, gram, [*short, *long], alpha)
    torch.testing.assert_close(base + found.delta, naive_rows(base, gram, [*short, *long], alpha), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("targets", "expected"), [(1, 3), (256, 3), (257, 2), (385, 1), (5000, 1)])
def test_directions_have_weights_of_their_own_while_there_is_room(targets: int, expected: int) -> None:
    assert row_systems.own_directions(targets, rank=3, width=768) == expected
