"""SPEED (Li et al., ICLR 2026): the change lives in the null space of the features of retained text.

With B an orthonormal basis of the null space, η Σ_e ‖(W0 + Δ) c_e − W0 c'_e‖² + λ ‖Δ‖² is minimized over Δ = Z Bᵀ:

    Δ = η W0 N B (η Bᵀ S B + λ I)⁻¹ Bᵀ,   S = Σ c cᵀ,   N = Σ (c' − c) cᵀ.

Which retained slots span the space is decided by the prior shift ‖Δ_e c_p‖², where Δ_e is the same edit without a null
space: only slots that move by at least `filter_factor` times the mean count. The empty prompt, start token included,
always counts.

Guarantees:
    1. With null_share = 0 the response to every slot that counts stays as it is, to rounding.
    2. With a larger share, ‖Δ c‖² summed over them is at most ‖Δ‖² times that share of their energy.

Unknown in the publication: the threshold under which a singular value counts as null, in units that carry over to other
text encoders. Chosen: a share of energy; slots are filtered one by one; what the publication keeps by equality counts
among the retained slots. Left out: the augmentation of retained text by random directions, which needs noise; what it
protects, a broad vocabulary covers here.
"""

from collections.abc import Mapping

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
    slot_moments,
)
from scapre.moments import Statistics
from scapre.row_products import symmetric_product

DIALS: Mapping[str, Dial] = {
    **PUBLISHED_READING_DIALS,
    "vocabulary": READING_DIALS["vocabulary"],
    "erasure_strength": Dial(1.0, "η: weight of the targets; 0 leaves every weight as it is", 0),
    "ridge": Dial(0.5, "λ: weight of ‖W − W0‖²", 1e-9),
    "filter_factor": Dial(1.0, "retained slots count from this many times the mean prior shift on; 0 keeps all", 0),
    "null_share": Dial(1e-3, "share of the retained slots' energy that the null space may hold", 0, 1),
}
NUMERICAL_NULL = 1e-13
"""Eigenvalues of the retained second moment below this fraction of its trace are rounding."""


def null_space(moment: Float[Tensor, "d_in d_in"], share: float) -> Float[Tensor, "d_in directions"]:
    """Returns the directions of least energy that together hold at most `share` of the trace of `moment`."""
    eigenvalues, vectors = torch.linalg.eigh(moment)
    held = eigenvalues.clamp_min(0.0).cumsum(dim=0)
    trace = held[-1]
    is_null = (held <= share * trace) | (eigenvalues <= NUMERICAL_NULL * trace)
    return vectors[:, is_null]


def shifted_most(
    statistics: Statistics, shift_moment: Float[Tensor, "d_in d_in"], factor: float
) -> Float[Tensor, "slots d_in"]:
    """Returns the named and found slots whose prior shift cᵀ (ΔᵀΔ) c is at least `factor` times the mean."""
    slots = torch.cat([statistics.retained.features[group] for group in ("named", "found")])
    if not len(slots):
        return slots
    shifts = (slots @ shift_moment * slots).sum(dim=1)
    return slots[shifts >= factor * shifts.mean()]


def _solve(problem: Problem, dials: Dials, clock: Stopwatch) -> Solution:
    base, statistics = problem.base, problem.statistics
    strength, ridge = float(dials["erasure_strength"]), float(dials["ridge"])
    with clock.phase("statistics"):
        gram, shift = (strength * moment for moment in slot_moments(statistics, averaged=False))
        free = solver.factorize(solver.add_ridge(gram, ridge))
        unbound = torch.cholesky_solve(shift.mT, free.factor).mT
        counted = shifted_most(statistics, unbound.mT @ problem.base_moment @ unbound, float(dials["filter_factor"]))
        moment = symmetric_product(counted, counted) + statistics.retained.sums["general"]
        basis = null_space(moment, float(dials["null_share"]))
    with clock.phase("solve"):
        inside = solver.factorize(solver.add_ridge(basis.mT @ gram @ basis, ridge)) if basis.numel() else free
        inner = torch.cholesky_solve((shift @ basis).mT, inside.factor).mT if basis.numel() else basis
        told = {
            "condition_number": inside.condition,
            "null_dimensions": basis.shape[1],
            "slots_that_count": len(counted),
        }
        return Solution.of_map(base, inner @ basis.mT, told)


METHOD = Method("speed", "least squares in the null space of the retained text that would shift (SPEED)", DIALS, _solve)
