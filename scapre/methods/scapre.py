"""The default method: change the channels that know a target, on the target's directions only, keep W0 elsewhere.

Minimized, rows i and targets k (see `scapre.solver` for the legend):

    Σ_i { (w_i − w0_i)ᵀ G0 (w_i − w0_i) + Σ_k η α_ik Σ_t ω_kt (w_iᵀ c_kt − w0_iᵀ c'_kt)² },  Σ_t ω_kt = 1
    G0 = λ (E/d_in) I + λ_p K0 + λ_r E R̂,  E = tr K0 (so that the dials mean the same for every text encoder)

followed by the geometry alignment of the rows that moved.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scapre import decoupler, geometry, solver, spectral
from scapre.concepts import DialValue
from scapre.determinism import Stopwatch
from scapre.methods.base import READING_DIALS, Dial, Dials, Method, Problem, Solution, slot_moments

HISTOGRAM_BINS = 10

DIALS: Mapping[str, Dial] = {
    **READING_DIALS,
    "erasure_strength": Dial(1.0, "η: scales every α_ik; 0 leaves every weight as it is", 0),
    "ridge": Dial(0.01, "λ: weight of ‖W − W0‖², in units of the mean feature energy per dimension", 0),
    "retention_strength": Dial(30.0, "λ_p: weight of K0, the second moment of retained text", 0),
    "conflict_strength": Dial(0.0, "λ_r: weight of R̂, what targets have in common with their neighbours (eq. 3)", 0),
    "noise": Dial(
        "auto", "ς in d' = |wᵀ(c − e)| / (ς‖w‖); auto puts the median channel at half of ln 2", 1e-9, choices=("auto",)
    ),
    "floor": Dial(0.0, "relevance below which α is exactly 0 and the row stays bit for bit", 0, 1),
    "geometry": Dial(0.0, "β of the geometry alignment (eq. 5); W moves by t = β/(1+β) towards W0 R", 0),
    "row_weights": Dial(
        "per_target",
        "α: per target, shared (the maximum over targets, eq. 7), or uniform (1 everywhere, no decoupler)",
        choices=("per_target", "shared", "uniform"),
    ),
    "rank": Dial(1, "directions each target's slots are compressed to when row_weights is per_target", 1),
}


def _solve(problem: Problem, dials: Dials, clock: Stopwatch) -> Solution:
    strength = float(dials["erasure_strength"])
    with clock.phase("statistics"):
        regularizer = solver.factorize(_regularizer(problem, dials))
        alpha, relevance_report = _row_weights(problem, dials)
    with clock.phase("solve"):
        delta = _solve_rows(problem, regularizer, alpha=strength * alpha, dials=dials)
    with clock.phase("refine"):
        delta = _refine(problem, delta, moved=(strength * alpha > 0).any(dim=1), strength=float(dials["geometry"]))
    return Solution(delta, {"condition_number": regularizer.condition, "relevance": relevance_report})


def _regularizer(problem: Problem, dials: Dials) -> Float[Tensor, "d_in d_in"]:
    retained = problem.statistics.retained.second_moment
    energy = torch.trace(retained)
    identity = torch.eye(len(retained), dtype=retained.dtype, device=retained.device)
    matrix = float(dials["ridge"]) * energy / len(retained) * identity + float(dials["retention_strength"]) * retained
    conflict = float(dials["conflict_strength"])
    if conflict and problem.statistics.targets:
        shared = [
            spectral.shared_direction(target.weights @ target.features, target.weights @ neutral)
            for target in problem.statistics.targets
            for neutral in target.neutrals
        ]
        matrix = matrix + conflict * energy * spectral.conflict_gate(torch.stack(shared, dim=1))
    return matrix


def _row_weights(problem: Problem, dials: Dials) -> tuple[Float[Tensor, "rows targets"], dict[str, Any]]:
    targets = problem.statistics.targets
    if not targets:
        return problem.base.new_zeros(len(problem.base), 0), {}
    contrasts = torch.stack(
        [decoupler.nearest_contrast(problem.base, t.features, t.neutrals, t.weights) for t in targets], dim=1
    )
    chosen: DialValue = dials["noise"]
    noise = decoupler.spreading_noise(contrasts) if chosen == "auto" else float(chosen)
    information = decoupler.mutual_information(contrasts, noise)
    if dials["row_weights"] == "shared":
        information = information.max(dim=1, keepdim=True).values.expand_as(information)
    alpha = torch.ones_like(information)
    if dials["row_weights"] != "uniform":
        parts = [decoupler.relevance(information[rows], floor=float(dials["floor"])) for rows in problem.parts.values()]
        alpha = torch.cat(parts)
    histogram = torch.histc(information / decoupler.LN2, bins=HISTOGRAM_BINS, min=0.0, max=1.0)
    report = {
        "noise": noise,
        "information_histogram": [int(count) for count in histogram.tolist()],
        "mean_row_weight": float(alpha.mean()),
        "untouched_rows": int((alpha == 0).all(dim=1).sum()),
    }
    return alpha, report


def _solve_rows(
    problem: Problem, regularizer: solver.Regularizer, *, alpha: Float[Tensor, "rows targets"], dials: Dials
) -> Float[Tensor, "rows d_in"]:
    targets = problem.statistics.targets
    if not targets:
        return torch.zeros_like(problem.base)
    if dials["row_weights"] != "per_target":
        gram, shift = slot_moments(problem.statistics)
        return solver.solve_shared_rows(problem.base, regularizer, slots=gram, shift=shift, row_weights=alpha[:, 0])
    factors = [
        solver.compress_slots(
            regularizer, features=t.features, anchors=t.anchors, weights=t.weights, rank=int(dials["rank"])
        )
        for t in targets
    ]
    return solver.solve_rows_per_target(problem.base, regularizer, factors=factors, row_weights=alpha)


def _refine(
    problem: Problem, delta: Float[Tensor, "rows d_in"], *, moved: Tensor, strength: float
) -> Float[Tensor, "rows d_in"]:
    if strength == 0.0:
        return delta
    refined = delta.clone()
    for rows in problem.parts.values():
        base, is_moved = problem.base[rows], moved[rows]
        aligned = geometry.align_geometry((base + delta[rows])[is_moved], base[is_moved], strength=strength)
        part = refined[rows]  # a view: rows that did not move keep Δ = 0
        part[is_moved] = aligned - base[is_moved]
    return refined


METHOD = Method("scapre", "per-channel relevance, protected by the second moment of retained text", DIALS, _solve)
