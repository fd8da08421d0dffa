import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scapre import decoupler


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_information_equals_that_of_the_noisy_threshold() -> None:
    for contrast, noise in [(0.3, 1.0), (1.0, 0.5), (2.0, 3.0)]:
        hit = 0.5 * (1 + math.erf(contrast / (2 * noise) / math.sqrt(2)))
        entropy = -hit * math.log(hit) - (1 - hit) * math.log(1 - hit)
        found = decoupler.mutual_information(torch.tensor([[contrast]], dtype=torch.float64), noise)
        assert float(found) == pytest.approx(math.log(2) - entropy, rel=1e-12)


def test_information_agrees_with_samples_of_the_noise() -> None:
    # the closed form replaces this sampling; the seed belongs to the test, not to the method
    row, target, neutral, noise = normal(0, 6), normal(1, 6), normal(2, 6), 0.7
    samples = normal(3, 2, 200_000, 6) * noise + torch.stack([target, neutral]).unsqueeze(1)
    fired = (samples @ row) > (row @ (target + neutral)) / 2
    if (row @ (target - neutral)) < 0:
        fired = ~fired
    error = float((~fired[0]).double().mean() + fired[1].double().mean()) / 2
    sampled = math.log(2) + error * math.log(error) + (1 - error) * math.log(1 - error)
    contrast = decoupler.row_contrast(row[None], (target - neutral)[None], torch.ones(1, dtype=torch.float64))
    assert float(decoupler.mutual_information(contrast[None], noise)) == pytest.approx(sampled, rel=0.03)


@given(seed=st.integers(0, 1000), noise=st.floats(1e-6, 1e6))
def test_information_stays_within_its_bounds(seed: int, noise: float) -> None:
    found = decoupler.mutual_information(normal(seed, 20, 3).abs() * 10, noise)
    assert bool(((found >= 0) & (found <= decoupler.LN2)).all())


def test_spreading_noise_puts_the_median_channel_at_half() -> None:
    contrasts = normal(0, 101, 1).abs()
    found = decoupler.mutual_information(contrasts, decoupler.spreading_noise(contrasts))
    assert float(found.median()) == pytest.approx(decoupler.LN2 / 2, rel=1e-3)


def test_a_row_must_tell_the_target_from_every_neighbour() -> None:
    weight, target = normal(0, 8, 5), normal(1, 3, 5)
    omega = torch.full((3,), 1 / 3, dtype=torch.float64)
    near, far = target + 0.01 * normal(2, 3, 5), normal(3, 3, 5)
    both = decoupler.nearest_contrast(weight, target, [near, far], omega)
    assert bool((both <= decoupler.row_contrast(weight, target - near, omega)).all())
    assert bool((decoupler.nearest_contrast(weight, target, [far], omega) > both).all())


def test_row_contrast_ignores_the_length_of_rows_and_survives_empty_ones() -> None:
    weight, contrast, omega = normal(0, 4, 5), normal(1, 2, 5), torch.full((2,), 0.5, dtype=torch.float64)
    weight[1] = 0.0
    found = decoupler.row_contrast(weight, contrast, omega)
    torch.testing.assert_close(found, decoupler.row_contrast(7.0 * weight, contrast, omega))
    assert float(found[1]) == 0.0


def test_relevance_below_the_floor_is_exactly_zero() -> None:
    information = torch.tensor([[0.01, 0.0], [0.2, 0.0], [0.4, 0.0]], dtype=torch.float64)
    alpha = decoupler.relevance(information, floor=0.1)
    assert alpha.tolist() == [[0.0, 0.0], [0.5, 0.0], [1.0, 0.0]]
