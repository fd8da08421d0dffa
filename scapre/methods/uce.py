"""Unified Concept Editing (ScaPre eq. 2), the baseline: every row, every slot, sums instead of means.

min Σ_e ‖W c_e − W0 c'_e‖² η + λ1 Σ_p ‖W c_p − W0 c_p‖² + λ2 ‖W − W0‖², solved by
W = W0 + η W0 N (η S + λ1 P + λ2 I)⁻¹ with S = Σ_e c cᵀ, N = Σ_e (c' − c) cᵀ, P = Σ_p c cᵀ over retained names.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from scapre import solver
from scapre.determinism import Stopwatch
from scapre.methods.base import PUBLISHED_READING_DIALS, Dial, Dials, Method, Problem, Solution, slot_moments
from scapre.moments import Statistics

DIALS: Mapping[str, Dial] = {
    **PUBLISHED_READING_DIALS,
    "erasure_strength": Dial(1.0, "η: weight of the targets; 0 leaves every weight as it is", 0),
    "retention_strength": Dial(0.1, "λ1: weight of the retained names", 0),
    "ridge": Dial(0.5, "λ2: weight of ‖W − W0‖²", 0),
}


def kept_moment(statistics: Statistics, dials: Dials) -> Float[Tensor, "d_in d_in"]:
    """Returns λ1 P + λ2 I, what holds the rows at W0."""
    named = statistics.retained.sums["named"] + statistics.retained.sums["found"]
    return solver.add_ridge(float(dials["retention_strength"]) * named, float(dials["ridge"]))


def edit_map(regularizer: solver.Regularizer, shift: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "d_in d_in"]:
    """Returns N G⁻¹, which every row is multiplied by, for the system G that holds targets and retained text alike."""
    return torch.cholesky_solve(shift.mT, regularizer.factor).mT


def _solve(problem: Problem, dials: Dials, clock: Stopwatch) -> Solution:
    strength = float(dials["erasure_strength"])
    with clock.phase("statistics"):
        gram, shift = slot_moments(problem.statistics, averaged=False)
        regularizer = solver.factorize(strength * gram + kept_moment(problem.statistics, dials))
    with clock.phase("solve"):
        change = edit_map(regularizer, strength * shift)
        return Solution.of_map(problem.base, change, {"condition_number": regularizer.condition})


METHOD = Method("uce", "least squares on all rows (UCE)", DIALS, _solve)
