"""Unified Concept Editing (ScaPre eq. 2), the baseline: every row, every slot, sums instead of means.

min Σ_e ‖W c_e − W0 c'_e‖² η + λ1 Σ_p ‖W c_p − W0 c_p‖² + λ2 ‖W − W0‖², solved by
W = W0 + η W0 N (η S + λ1 P + λ2 I)⁻¹ with S = Σ_e c cᵀ, N = Σ_e (c' − c) cᵀ, P = Σ_p c cᵀ over retained names.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from scapre import solver
from scapre.determinism import Stopwatch
from scapre.methods.base import READING_DIALS, Dial, Dials, Method, Problem, Solution

DIALS: Mapping[str, Dial] = {
    **READING_DIALS,
    "anchor": replace(READING_DIALS["anchor"], default=""),
    "vocabulary": replace(READING_DIALS["vocabulary"], default=0),
    "erasure_strength": Dial(1.0, "η: weight of the targets; 0 leaves every weight as it is", 0),
    "retention_strength": Dial(0.1, "λ1: weight of the retained names", 0),
    "ridge": Dial(0.5, "λ2: weight of ‖W − W0‖²", 0),
}


def _solve(problem: Problem, dials: Dials, clock: Stopwatch) -> Solution:
    statistics = problem.statistics
    strength = float(dials["erasure_strength"])
    with clock.phase("statistics"):
        zero = torch.zeros_like(statistics.retained.sums["general"])
        gram = sum((t.features.mT @ t.features for t in statistics.targets), start=zero)
        shift = sum(((t.anchors - t.features).mT @ t.features for t in statistics.targets), start=zero)
        kept = statistics.retained.sums["named"] + statistics.retained.sums["found"]
        identity = torch.eye(len(zero), dtype=zero.dtype, device=zero.device)
        system = strength * gram + float(dials["retention_strength"]) * kept + float(dials["ridge"]) * identity
        regularizer = solver.factorize(system)
    with clock.phase("solve"):
        inverse_applied = torch.cholesky_solve((strength * shift).mT, regularizer.factor).mT
        delta = problem.base @ inverse_applied
    return Solution(delta, {"condition_number": regularizer.condition})


METHOD = Method("uce", "least squares on all rows (UCE)", DIALS, _solve)
