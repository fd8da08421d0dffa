"""ScaPre as printed (eq. 3–10), with the one correction without which it has no use: W0 on the right-hand side.

Minimized is tr(Δ (λI + R) Δᵀ) + tr(Δᵀ B Δ) + η Σ_k Σ_t ‖W c_kt − W0 c'_kt‖² over Δ = W − W0, whose zero gradient is the
Sylvester equation

    B Δ + Δ A = η W0 N,   A = λI + R + η S,   S = Σ c cᵀ,   N = Σ (c' − c) cᵀ,   B = diag(α)

(eq. 10 with B and λI + R acting on W − W0: as printed they act on W, and W = 0 solves it for V = 0). With A = Q Λ Qᵀ
the rows are Δ_ij = (η W0 N Q)_ij / (α_i + λ_j). Then W moves towards W0 W0ᵀ along the Bures geodesic (eq. 5).

Unknown in the publication: λ, β, the threshold, the noise, the number of samples and the neutral inputs. Chosen: the
closed form of the mutual information (see `scapre.decoupler`), the anchor as neutral input, α from the maximum over
targets, R from raw columns (where it vanishes for CLIP), the exact minimizer in place of the proximal step. Known
flaw, kept: B is a penalty, so the more a channel knows of a target, the less it moves.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from scapre import decoupler, geometry, solver, spectral
from scapre.determinism import Stopwatch
from scapre.methods.base import (
    PUBLISHED_READING_DIALS,
    Dial,
    Dials,
    Method,
    Problem,
    Solution,
    mean_features,
    slot_moments,
)
from scapre.moments import target_batches

DIALS: Mapping[str, Dial] = {
    **PUBLISHED_READING_DIALS,
    "erasure_strength": Dial(1.0, "η: weight of the targets; 0 leaves every weight as it is", 0),
    "ridge": Dial(0.5, "λ: weight of ‖W − W0‖²", 0),
    "conflict_strength": Dial(1.0, "weight of R, the soft gate on directions targets share (eq. 4)", 0),
    "relevance_strength": Dial(1.0, "scale of B = diag(α): penalty on channels that know a target (eq. 8)", 0),
    "neutral": Dial("anchor", "what a channel must tell a target from in MI", choices=("anchor", "nearest")),
    "noise": Dial("auto", "ς in d'; auto puts the median channel at half of ln 2", 1e-9, choices=("auto",)),
    "geometry": Dial(0.1, "β of the geometry alignment (eq. 5)", 0),
}


def _solve(problem: Problem, dials: Dials, clock: Stopwatch) -> Solution:
    strength = float(dials["erasure_strength"])
    with clock.phase("statistics"):
        gram, shift = slot_moments(problem.statistics, averaged=False)
        gate = spectral.conflict_gate(mean_features(problem.statistics), normalized=False)
        held = solver.add_ridge(float(dials["conflict_strength"]) * gate, float(dials["ridge"]))
        regularizer = solver.factorize(held + strength * gram)
        penalty = float(dials["relevance_strength"]) * _relevance(problem, dials)
    if not problem.statistics.targets or strength == 0.0:
        return Solution(torch.zeros_like(problem.base), {"condition_number": regularizer.condition})
    with clock.phase("solve"):
        delta = solver.solve_sylvester(problem.base @ (strength * shift), regularizer.matrix, penalty)
    with clock.phase("refine"):
        aligned = geometry.align_projections(problem.base, delta, problem.parts, strength=float(dials["geometry"]))
    return Solution(aligned, {"condition_number": regularizer.condition, "mean_penalty": float(penalty.mean())})


def _relevance(problem: Problem, dials: Dials) -> Float[Tensor, " rows"]:
    """Returns α_i = MI_i / max_j MI_j per projection, MI_i the maximum over targets (eq. 7)."""
    targets, against_anchor = problem.statistics.targets, dials["neutral"] == "anchor"
    rows, kept = decoupler.unit_rows(problem.base, problem.base.dtype), decoupler.directions_kept(len(targets))
    highest = problem.base.new_zeros(len(problem.base))
    for _, batch in target_batches(targets):
        contrasts = decoupler.nearest_contrasts(rows, batch, kept=kept, against_anchor=against_anchor)
        highest = torch.maximum(highest, contrasts.max(dim=1).values)
    chosen = dials["noise"]
    noise = decoupler.spreading_noise(highest) if chosen == "auto" else float(chosen)
    information = decoupler.mutual_information(highest.unsqueeze(1), noise)
    return torch.cat([decoupler.relevance(information[rows], floor=0.0) for rows in problem.parts.values()]).squeeze(1)


METHOD = Method("scapre-printed", "Sylvester equation with relevance as a penalty (ScaPre eq. 10)", DIALS, _solve)
