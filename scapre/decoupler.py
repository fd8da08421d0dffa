"""Informax Decoupler, deterministic: how much each output channel tells a target from its nearest neighbours.

Legend: w one output row, c a target feature, e a neutral feature, ς the noise, d' the discriminability, MI in nats.
With noise N(0, ς²I) on the input, the response of a row is normal with deviation ς‖w‖ under both; a threshold half way
errs with probability Φ(−d'/2), hence MI = ln 2 − h(Φ(d'/2)) (ScaPre eq. 6–7 in closed form: no samples, no seed).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LN2 = math.log(2.0)
HALF_INFORMATION = 2.4530
"""d' at which a channel carries half of ln 2."""


def row_contrast(
    weight: Float[Tensor, "rows d_in"], contrast: Float[Tensor, "slots d_in"], slot_weights: Float[Tensor, " slots"]
) -> Float[Tensor, " rows"]:
    """Returns sqrt(Σ_t ω_t (wᵀ(c_t − e_t))²) / ‖w‖ for every row: d' for ς = 1; 0 for an all-zero row."""
    squared = (weight @ contrast.mT).square() @ slot_weights
    norms = torch.linalg.vector_norm(weight, dim=1)
    return torch.where(norms > 0, squared.sqrt() / norms.clamp_min(torch.finfo(weight.dtype).tiny), 0.0)


def nearest_contrast(
    weight: Float[Tensor, "rows d_in"],
    target: Float[Tensor, "slots d_in"],
    neutrals: Sequence[Float[Tensor, "slots d_in"]],
    slot_weights: Float[Tensor, " slots"],
) -> Float[Tensor, " rows"]:
    """Returns the smallest `row_contrast` over the neutrals: a row must tell the target from all of them."""
    contrasts = [row_contrast(weight, target - neutral, slot_weights) for neutral in neutrals]
    return torch.stack(contrasts).min(dim=0).values


def spreading_noise(contrasts: Float[Tensor, "..."]) -> float:
    """Returns the ς at which the median channel carries half of ln 2, so that relevance is spread over (0, 1)."""
    if not contrasts.numel():
        return 1.0
    values = contrasts.reshape(-1).sort().values
    median = float(values[(len(values) - 1) // 2])
    return median / HALF_INFORMATION if median > 0 else 1.0


def mutual_information(contrasts: Float[Tensor, "rows targets"], noise: float) -> Float[Tensor, "rows targets"]:
    """Returns MI = ln 2 − h(Φ(d'/2)) in nats, with d' = contrast / ς."""
    error = torch.special.ndtr(-contrasts / (2.0 * noise))
    entropy = torch.special.entr(error) + torch.special.entr(1.0 - error)
    return (LN2 - entropy).clamp(0.0, LN2)


def relevance(information: Float[Tensor, "rows targets"], *, floor: float) -> Float[Tensor, "rows targets"]:
    """Returns α = MI_i / max_j MI_j per target over the rows of one projection; below `floor` it is exactly 0."""
    if not information.numel():
        return information
    highest = information.max(dim=0, keepdim=True).values
    alpha = torch.where(highest > 0, information / highest.clamp_min(torch.finfo(information.dtype).tiny), 0.0)
    return torch.where(alpha < floor, 0.0, alpha)
