"""OCE (Sun et al., ICML 2026): every projection is rotated, W = P W0 with an orthogonal P, so norms and angles stay.

P maximizes tr(Pᵀ M), a Procrustes problem that the SVD M = U Σ Vᵀ solves by P = U Vᵀ, with

    M = W0 (K0 + C_n C_nᵀ) W0ᵀ / e − η R (I − R*),

K0 the second moment of retained text, C_n C_nᵀ that of the empty prompt, R the projector on the subspace of the
targets' responses and R* on that of the anchors'. The first term asks that retained responses stay, the second that the
targets' leave what they do not share with their anchors.

Guarantees:
    1. P is orthogonal.
    2. W Wᵀ has the eigenvalues of W0 W0ᵀ.

Unknown in the publication: how the subspaces are cut, how the two terms are scaled, and which P is meant where M says
nothing, as where there is less text than directions. Chosen: a subspace holds `subspace_energy` of the responses'
energy, at most `subspace_share` of W0's rank; e is the mean energy per direction; and of all P that do, the one that
turns least, for which `LEAST_TURN` times its norm is added to M's diagonal. Rounding would decide otherwise.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scapre import solver
from scapre.determinism import Stopwatch
from scapre.methods.base import (
    PUBLISHED_READING_DIALS,
    READING_DIALS,
    Dial,
    Dials,
    Method,
    Problem,
    Solution,
    slot_batches,
)
from scapre.moments import Statistics
from scapre.row_products import symmetric_product

LEAST_TURN = 1e-10
"""Of M's norm."""
ROUNDING = 1e-12
"""Share of the energy that may be missing where all of it is asked for."""
DIALS: Mapping[str, Dial] = {
    **PUBLISHED_READING_DIALS,
    "vocabulary": READING_DIALS["vocabulary"],
    "erasure_strength": Dial(1.0, "η: weight of leaving the targets' subspace; 0 leaves every weight as it is", 0),
    "empty_strength": Dial(1.0, "weight of C_n C_nᵀ, the empty prompt, beside K0", 0),
    "subspace_energy": Dial(0.9, "share of the responses' energy that R and R* hold", 0, 1),
    "subspace_share": Dial(0.5, "largest dimension of R, as a share of W0's rank", 0, 1),
}


@dataclass(frozen=True)
class Rotation:
    """P = I + basis turn basisᵀ."""

    basis: Float[Tensor, "d_out rank"]
    """Orthonormal columns whose span holds W0's columns; P is the identity outside of it."""
    turn: Float[Tensor, "rank rank"]
    condition: float
    """Condition number of the Procrustes problem."""


def leading_projector(
    moment: Float[Tensor, "d_out d_out"], *, energy: float, most: int
) -> Float[Tensor, "d_out d_out"]:
    """Returns the projector on the fewest, and at most `most`, eigenvectors that hold `energy` of the trace."""
    eigenvalues, vectors = torch.linalg.eigh(solver.finite(moment))
    held = eigenvalues.clamp_min(0.0).flip(0).cumsum(dim=0)
    needed = int((held < (energy - ROUNDING) * held[-1]).sum()) + 1 if held[-1] > 0 else 0
    leading = vectors.flip(1)[:, : min(needed, most)]
    return leading @ leading.mT


def rotation(
    base: Float[Tensor, "d_out d_in"],
    *,
    retained: Float[Tensor, "d_in d_in"],
    targets: Float[Tensor, "d_in d_in"],
    anchors: Float[Tensor, "d_in d_in"],
    dials: Dials,
) -> Rotation:
    """Returns P, given the second moments of the three texts."""
    basis = torch.linalg.qr(base).Q  # holds the span of the columns
    inner = basis.mT @ base
    kept = inner @ retained @ inner.mT
    energy, rank = float(dials["subspace_energy"]), basis.shape[1]
    most = math.ceil(float(dials["subspace_share"]) * rank)
    leaving = leading_projector(inner @ targets @ inner.mT, energy=energy, most=most)
    allowed = leading_projector(inner @ anchors @ inner.mT, energy=energy, most=rank)
    unwanted = leaving - leaving @ allowed
    if not unwanted.any():
        return Rotation(basis, torch.zeros_like(kept), 1.0)
    scale = rank / torch.trace(kept).clamp_min(torch.finfo(kept.dtype).tiny)
    wanted = solver.finite(scale * kept - float(dials["erasure_strength"]) * unwanted)
    left, sigma, right = torch.linalg.svd(solver.add_ridge(wanted / wanted.norm(), LEAST_TURN))
    return Rotation(basis, solver.add_ridge(left @ right, -1.0), float(sigma[0] / sigma[-1]))


def _solve(problem: Problem, dials: Dials, clock: Stopwatch) -> Solution:
    base, statistics = problem.base, problem.statistics
    delta, conditions = torch.zeros_like(base), [1.0]
    if not statistics.targets or float(dials["erasure_strength"]) == 0.0:
        return Solution(delta, {"condition_number": 1.0})
    with clock.phase("statistics"):
        targets, anchors = _second_moments(statistics)
        general = statistics.retained.sums["general"] / statistics.retained.counts["general"]
        retained = statistics.retained.second_moment + float(dials["empty_strength"]) * general
    with clock.phase("solve"):
        for rows in problem.parts.values():
            found = rotation(base[rows], retained=retained, targets=targets, anchors=anchors, dials=dials)
            delta[rows] = found.basis @ (found.turn @ (found.basis.mT @ base[rows]))
            conditions.append(found.condition)
    return Solution(delta, {"condition_number": max(conditions)})


def _second_moments(statistics: Statistics) -> tuple[Float[Tensor, "d_in d_in"], Float[Tensor, "d_in d_in"]]:
    """Returns Σ ω c cᵀ and Σ ω c' c'ᵀ over all targets."""
    targets = torch.zeros_like(statistics.retained.sums["general"])
    anchors = torch.zeros_like(targets)
    for batch in slot_batches(statistics):
        targets += symmetric_product(batch.features, batch.weights.unsqueeze(1) * batch.features)
        anchors += symmetric_product(batch.anchors, batch.weights.unsqueeze(1) * batch.anchors)
    return targets, anchors


METHOD = Method(
    "oce", "an orthogonal map turns the targets' responses away (OCE)", DIALS, _solve, leads_to_anchor=False
)
