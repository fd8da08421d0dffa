import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scapre.geometry import align_geometry, polar_isometry
from scapre.spectral import conflict_gate, shared_direction


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bures_squared(first: Tensor, second: Tensor) -> Tensor:
    """Returns Bures²(A Aᵀ, B Bᵀ) = min ‖A − B Q‖² over orthogonal Q."""
    nuclear = torch.linalg.svdvals(first.mT @ second).sum()
    return first.square().sum() + second.square().sum() - 2.0 * nuclear


@given(seed=st.integers(0, 10_000), strength=st.floats(0.01, 50.0), rows=st.sampled_from([3, 5, 9]))
def test_alignment_minimizes_its_objective(seed: int, strength: float, rows: int) -> None:
    base, edited = normal(seed, rows, 5), normal(seed + 1, rows, 5)

    def objective(weight: Tensor) -> Tensor:
        return (weight - edited).square().sum() + strength * bures_squared(weight, base)

    aligned = align_geometry(edited, base, strength=strength).requires_grad_(True)
    gradient = torch.autograd.grad(objective(aligned), aligned)[0]
    assert gradient.norm() < 1e-8 * (1 + strength) * base.norm()
    for step in range(5):
        assert objective(aligned) <= objective(aligned + 0.05 * normal(seed + 2 + step, rows, 5)) + 1e-9


@given(seed=st.integers(0, 10_000), strength=st.floats(0.01, 1e6), rows=st.sampled_from([3, 9]))
def test_alignment_keeps_erased_directions_erased(seed: int, strength: float, rows: int) -> None:
    base, erased = normal(seed, rows, 6), normal(seed + 1, 6, 2)
    basis = torch.linalg.qr(erased).Q
    edited = base - base @ basis @ basis.mT
    assert (base @ erased).norm() > 1.0  # the control: before the edit the response is there
    aligned = align_geometry(edited, base, strength=strength)
    assert (aligned @ erased).norm() < 1e-9 * (base @ erased).norm()


def test_alignment_moves_the_second_moment_towards_the_base() -> None:
    base = normal(0, 8, 5)
    edited = base + 0.5 * normal(1, 8, 5)
    distances = [float(bures_squared(align_geometry(edited, base, strength=s), base)) for s in (0.0, 0.5, 5.0, 500.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4 * distances[0]


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_alignment_of_the_base_with_itself_changes_nothing(strength: float) -> None:
    base = normal(0, 4, 6)
    torch.testing.assert_close(align_geometry(base, base, strength=strength), base, rtol=1e-12, atol=1e-12)


def test_polar_factor_acts_on_the_range_only() -> None:
    matrix = normal(0, 5, 2) @ normal(1, 2, 5)
    isometry = polar_isometry(matrix)
    torch.testing.assert_close(isometry @ isometry.mT @ isometry, isometry)
    assert int(torch.linalg.matrix_rank(isometry)) == 2


def test_conflict_gate_is_bounded_and_does_not_saturate_on_long_features() -> None:
    directions = normal(0, 12, 4)
    gate = conflict_gate(directions)
    torch.testing.assert_close(gate, conflict_gate(27.0 * directions))
    eigenvalues = torch.linalg.eigvalsh(gate)
    assert eigenvalues.min() > -1e-12
    assert 0.1 < float(eigenvalues.max()) < 0.28


def test_conflict_gate_equals_equation_3() -> None:
    units = torch.nn.functional.normalize(normal(0, 12, 4), dim=0)
    left, sigma, _ = torch.linalg.svd(units, full_matrices=False)
    expected = sum((1 - torch.sigmoid(s)) * s * torch.outer(u, u) for s, u in zip(sigma, left.mT, strict=True))
    torch.testing.assert_close(conflict_gate(units), expected)


def test_shared_direction_leaves_out_what_tells_them_apart() -> None:
    target, neutral = normal(0, 6), normal(1, 6)
    shared = shared_direction(target, 3.0 * neutral)
    contrast = target / target.norm() - neutral / neutral.norm()
    assert abs(float(shared @ contrast)) < 1e-12
    assert float(shared.norm()) == pytest.approx(1.0)
