"""The conflict gate of the spectral trace regularizer (ScaPre eq. 3) on normalized directions.

Legend: C directions as columns, U and σ its left singular vectors and singular values, σ̃ the gated ones.
On raw features (‖c‖ ≈ 27 for CLIP) sigmoid(σ) is 1 and the gate vanishes; on unit columns σ lies in [0, √m].
"""

import torch
from jaxtyping import Float
from torch import Tensor

from scapre.errors import SingularSystemError


def shared_direction(target: Float[Tensor, " d_in"], neutral: Float[Tensor, " d_in"]) -> Float[Tensor, " d_in"]:
    """Returns the unit vector half way between a target and its neighbour: what they have in common."""
    units = torch.nn.functional.normalize(torch.stack([target, neutral]), dim=1)
    return torch.nn.functional.normalize(units.sum(dim=0), dim=0)


def conflict_gate(directions: Float[Tensor, "d_in directions"]) -> Float[Tensor, "d_in d_in"]:
    """Returns R̂ = U diag(σ̃) Uᵀ with σ̃ = (1 − sigmoid(σ)) σ, from the SVD of the normalized columns (eq. 3).

    Directions that few columns use weigh most; one that all of them share (the mean of all text) is let go, it is
    held by K0 already. The eigenvalues of R̂ lie in [0, 0.28].
    """
    units = torch.nn.functional.normalize(directions.double(), dim=0)
    if not bool(torch.isfinite(units).all()):
        raise SingularSystemError(
            "expected finite text features, found NaN or infinity; check the text encoder's weights"
        )
    left, sigma, _ = torch.linalg.svd(units, full_matrices=False)
    gated = (1.0 - torch.sigmoid(sigma)) * sigma
    return (left * gated) @ left.mT
