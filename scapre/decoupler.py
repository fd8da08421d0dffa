"""Informax Decoupler, deterministic: how much each output channel tells a target from its nearest neighbours.

Legend: w one output row, c a target feature, e a neutral feature, ς the noise, d' the discriminability, MI in nats.
With noise N(0, ς²I) on the input, the response of a row is normal with deviation ς‖w‖ under both; a threshold half way
errs with probability Φ(−d'/2), hence MI = ln 2 − h(Φ(d'/2)) (ScaPre eq. 6–7 in closed form: no samples, no seed).

Over a target's slots with weights ω, d'² = Σ_t ω_t (wᵀ(c_t − e_t))² / (ς‖w‖)² = Σ_j (wᵀg_j)² / (ς‖w‖)² for the
principal directions g_j of the contrasts. Few of them hold most of it; what is cut off enters as its mean over all w.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scapre.moments import TargetSlots

LN2 = math.log(2.0)
HALF_INFORMATION = 2.4530
"""d' at which a channel carries half of ln 2."""
ALL_DIRECTIONS = 512
"""Principal directions of contrasts over all targets together; up to some ten targets none is cut off."""
MEDIAN_SAMPLE = 1 << 21
"""Contrasts that are enough to take the median of."""
FEWEST_DIRECTIONS = 3
"""Principal directions of one target, however many targets there are."""
SMALL_SQUARE = 1e-2
"""Of (2 Φ(d'/2) − 1)²; below, four terms of the series of MI are exact to ten digits."""


@dataclass(frozen=True)
class UnitRows:
    """Rows at unit length."""

    rows: Float[Tensor, "rows d_in"]
    is_empty: Bool[Tensor, "rows 1"]
    """Rows that were all zero, and still are."""


@dataclass(frozen=True)
class Contrasts:
    """What tells some targets from their neutrals."""

    directions: Float[Tensor, "targets kept d_in"]
    """Principal directions g_j of each target, scaled by the root of their energy, strongest first."""
    remainder: Float[Tensor, " targets"]
    """Energy that was cut off, per dimension: its mean contribution to d'² over rows of unit length."""


def directions_kept(targets: int) -> int:
    """Returns how many principal directions each of `targets` targets may keep."""
    return max(FEWEST_DIRECTIONS, ALL_DIRECTIONS // max(targets, 1))


def principal_contrasts(
    contrasts: Sequence[Float[Tensor, "_ d_in"]], slot_weights: Sequence[Float[Tensor, " _"]], kept: int
) -> Contrasts:
    """Returns the `kept` principal directions of each target's contrasts c − e; exact if no target has more slots."""
    longest = max(len(weights) for weights in slot_weights)
    weighted = contrasts[0].new_zeros(len(contrasts), longest, contrasts[0].shape[1])
    for filled, contrast, weights in zip(weighted, contrasts, slot_weights, strict=True):
        filled[: len(weights)] = weights.sqrt().unsqueeze(1) * contrast
    energy, mixing = torch.linalg.eigh(weighted @ weighted.mT)
    directions = mixing.flip(2)[:, :, :kept].mT @ weighted
    cut = energy.clamp_min(0.0)[:, : max(longest - kept, 0)].sum(dim=1)
    return Contrasts(directions, cut / weighted.shape[2])


def row_contrasts(rows: UnitRows, contrasts: Contrasts) -> Float[Tensor, "rows targets"]:
    """Returns d' for ς = 1 of every row and target; 0 for an empty row."""
    count, kept, width = contrasts.directions.shape
    flat = contrasts.directions.transpose(0, 1).reshape(kept * count, width).to(rows.rows)
    squared = (rows.rows @ flat.mT).square_().unflatten(1, (kept, count)).sum(dim=1)
    squared += contrasts.remainder.to(squared)
    return squared.sqrt_().masked_fill_(rows.is_empty, 0.0)


def nearest_contrasts(
    rows: UnitRows, targets: Sequence[TargetSlots], *, kept: int, against_anchor: bool = False
) -> Float[Tensor, "rows targets"]:
    """Returns each target's smallest d' over its neutrals (or its anchor): a row must tell it from all of them."""
    neutrals = [(target.anchors,) if against_anchor else target.neutrals for target in targets]
    nearest: Tensor | None = None
    for place in range(max(len(features) for features in neutrals)):
        contrasts = [
            target.features - features[min(place, len(features) - 1)]
            for target, features in zip(targets, neutrals, strict=True)
        ]
        found = row_contrasts(rows, principal_contrasts(contrasts, [target.weights for target in targets], kept))
        nearest = found if nearest is None else torch.minimum(nearest, found)
    assert nearest is not None
    return nearest


def unit_rows(weight: Float[Tensor, "rows d_in"], dtype: torch.dtype) -> UnitRows:
    """Returns the rows at unit length in `dtype`."""
    norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    return UnitRows((weight / norms.clamp_min(torch.finfo(weight.dtype).tiny)).to(dtype), norms == 0.0)


def spreading_noise(contrasts: Float[Tensor, "rows ..."]) -> float:
    """Returns the ς at which the median channel carries half of ln 2, so that relevance is spread over (0, 1).

    Of more than `MEDIAN_SAMPLE` values, the median is that of every n-th row.
    """
    if not contrasts.numel():
        return 1.0
    sample = contrasts[:: -(-contrasts.numel() // MEDIAN_SAMPLE)].reshape(-1)
    median = float(sample.kthvalue((len(sample) + 1) // 2).values)
    return median / HALF_INFORMATION if median > 0 else 1.0


def mutual_information(contrasts: Float[Tensor, "rows targets"], noise: float) -> Float[Tensor, "rows targets"]:
    """Returns MI = ln 2 − h(Φ(d'/2)) in nats, with d' = contrast / ς."""
    scaled = contrasts / (2.0 * math.sqrt(2.0) * noise)
    error = 0.5 * torch.erfc(scaled)
    entropy = torch.special.entr(error) + torch.special.entr(1.0 - error)
    square = torch.erf(scaled).square()
    series = square * (1 / 2 + square * (1 / 12 + square * (1 / 30 + square / 56)))  # where ln 2 − h cancels
    return torch.where(square < SMALL_SQUARE, series, (LN2 - entropy).clamp(0.0, LN2))


def relevance(information: Float[Tensor, "rows targets"], *, floor: float) -> Float[Tensor, "rows targets"]:
    """Returns α = MI_i / max_j MI_j per target over the rows of one projection; below `floor` it is exactly 0."""
    if not information.numel():
        return information
    highest = information.max(dim=0, keepdim=True).values
    alpha = torch.where(highest > 0, information / highest.clamp_min(torch.finfo(information.dtype).tiny), 0.0)
    return torch.where(alpha < floor, 0.0, alpha)
