"""Geometry alignment, exact: pulls W Wᵀ towards W0 W0ᵀ (ScaPre eq. 5 and 8–10).

A response that is 0 stays 0; one that is only small is a direction like any other, of which up to the share t of the
base's response comes back.

Legend: W* the weight to refine, W0 the base weight, β the strength, t = β/(1+β), R the polar factor of W0ᵀW*.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

RANGE_TOLERANCE = 1e-10
"""Singular values below this fraction of the largest count as 0."""


def polar_isometry(matrix: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "d_in d_in"]:
    """Returns the polar factor of `matrix` as a partial isometry: it acts on the range only and is 0 elsewhere."""
    left, sigma, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = (sigma > RANGE_TOLERANCE * sigma.max().clamp_min(torch.finfo(sigma.dtype).tiny)).to(matrix.dtype)
    return (left * kept) @ right


def align_geometry(
    edited: Float[Tensor, "d_out d_in"], base: Float[Tensor, "d_out d_in"], *, strength: float
) -> Float[Tensor, "d_out d_in"]:
    """Returns (1 − t) W* + t W0 R, which for W* of full rank is argmin_W ‖W − W*‖² + β Bures²(W Wᵀ, W0 W0ᵀ).

    Otherwise R acts on the row space of W* alone, at some cost to the minimum, so that W* c = 0 gives W c = 0. No rows,
    or β = 0, returns `edited` itself.
    """
    if strength == 0.0 or not len(edited):
        return edited
    share = strength / (1.0 + strength)
    if len(edited) < edited.shape[1]:  # few rows: the polar factor of W0ᵀW* lives in their spans, and is smaller there
        left, right = torch.linalg.qr(base.mT), torch.linalg.qr(edited.mT)
        turned = (base @ left.Q) @ polar_isometry(left.R @ right.R.mT) @ right.Q.mT
    else:
        turned = base @ polar_isometry(base.mT @ edited)
    return (1.0 - share) * edited + share * turned


def align_projections(
    base: Float[Tensor, "rows d_in"],
    delta: Float[Tensor, "rows d_in"],
    parts: Mapping[str, slice],
    *,
    strength: float,
) -> Float[Tensor, "rows d_in"]:
    """Returns Δ after `align_geometry` of each projection; rows with Δ = 0 did not move and do not take part."""
    if strength == 0.0:
        return delta
    moved, aligned = (delta != 0).any(dim=1), delta.clone()
    for rows in parts.values():
        kept, is_moved = base[rows], moved[rows]
        edited = align_geometry((kept + delta[rows])[is_moved], kept[is_moved], strength=strength)
        part = aligned[rows]  # a view: rows that did not move keep Δ = 0
        part[is_moved] = edited - kept[is_moved]
    return aligned
