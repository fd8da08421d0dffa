"""The default method: change the channels that know a target, on the target's directions only, keep W0 elsewhere.

Minimized, rows i and targets k (see `scapre.solver` for the legend):

    Σ_i { (w_i − w0_i)ᵀ G0 (w_i − w0_i) + Σ_k η_k α_ik Σ_t ω_kt (w_iᵀ c_kt − w0_iᵀ c'_kt)² },  Σ_t ω_kt = 1
    G0 = λ (E/d_in) I + λ_p K0 + λ_r E R̂,  E = tr K0 (so that the dials mean the same for every text encoder)
    η_k = η / γ_k,  γ_k the largest eigenvalue of S_k f = γ G0 f,  S_k = Σ_t ω_kt c_kt c_ktᵀ

followed by the geometry alignment of the rows that moved. What G0 leaves free of a target beside a retained look-alike
is little, and so is its γ_k; η_k makes up for that: alone, every target keeps 1/(1 + η) of its response along its
strongest direction in the metric of G0, and more of what else its slots hold.

By default α = 1 everywhere, and all rows are multiplied by one matrix. With row weights per target (the decoupler),
each target's slots are cut to `rank` directions first; beyond d_in directions in all, only the first of a target's keep
row weights of their own, the others take the row's mean over targets, and contrasts are measured along their strongest
directions; see `scapre.row_systems` and `scapre.decoupler`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scapre import decoupler, geometry, row_systems, solver, spectral
from scapre.determinism import Stopwatch
from scapre.methods.base import (
    READING_DIALS,
    Dial,
    Dials,
    Method,
    Problem,
    Solution,
    scaled_kept_moment,
    slot_moments,
)
from scapre.methods.reach import carry_equally, divided
from scapre.moments import target_batches

HISTOGRAM_BINS = 10
"""Equal parts of α from 0 to 1."""

DECOUPLED = ("row_weights", ("per_target", "shared"))
"""With what the decoupler's dials are read."""
DIALS: Mapping[str, Dial] = {
    **READING_DIALS,
    "erasure_strength": Dial(
        5.0,
        "η: a lone target keeps 1/(1 + η) of its strongest direction, and more of the rest; 0 leaves every weight as "
        "it is",
        0,
    ),
    "balance": Dial(
        "targets",
        "η_k: targets divides η by each target's γ, so that all alone would lose the same share; none by the mean γ; "
        "answers then turns them up or down until each target's answer has gone `reach` of the way to another name's",
        choices=("targets", "answers", "none"),
    ),
    "reach": Dial(
        0.7,
        "p: where answers takes every target's answer, in company, with η_k up to six times larger or smaller; 1 is "
        "another name's answer",
        0,
        1,
        read_with=("balance", ("answers",)),
    ),
    "ridge": Dial(0.02, "λ: weight of ‖W − W0‖², in units of the mean feature energy per dimension", 0),
    "retention_strength": Dial(30.0, "λ_p: weight of K0, the second moment of retained text", 0),
    "conflict_strength": Dial(0.0, "λ_r: weight of R̂, what targets have in common with their neighbours (eq. 3)", 0),
    "noise": Dial(
        "auto",
        "ς in d' = |wᵀ(c − e)| / (ς‖w‖); auto puts the median channel at half of ln 2",
        1e-9,
        choices=("auto",),
        read_with=DECOUPLED,
    ),
    "floor": Dial(0.0, "relevance below which α is exactly 0 and the row stays bit for bit", 0, 1, read_with=DECOUPLED),
    "geometry": Dial(0.0, "β of the geometry alignment (eq. 5); W moves by t = β/(1+β) towards W0 R", 0),
    "row_weights": Dial(
        "uniform",
        "α: uniform (1 everywhere), or the decoupler's, per target or shared (the maximum over targets, eq. 7)",
        choices=("uniform", "per_target", "shared"),
    ),
    "rank": Dial(
        "auto",
        "directions each target's slots are cut to, which also bounds the rank of the edit; auto: 1 per target with "
        "row weights per target, all of them otherwise",
        1,
        choices=("auto",),
        is_whole=True,
    ),
    "own_directions": Dial(
        "auto",
        "how many of them have row weights per target, the others the row's mean; auto: as many as d_in has room for",
        1,
        choices=("auto",),
        is_whole=True,
        read_with=("row_weights", ("per_target",)),
    ),
}


def _solve(problem: Problem, dials: Dials, clock: Stopwatch) -> Solution:
    if not problem.statistics.targets:
        return Solution(torch.zeros_like(problem.base), {"condition_number": 1.0})
    with clock.phase("statistics"):
        regularizer = solver.factorize(_regularizer(problem, dials))
        alpha, report = row_weights(problem, dials)
    with clock.phase("solve"):
        solution = _solve_rows(problem, regularizer, alpha=alpha, dials=dials)
    told = {"condition_number": regularizer.condition, "relevance": report, **solution.diagnostics}
    if not (strength := float(dials["geometry"])):
        return replace(solution, diagnostics=told)
    with clock.phase("refine"):
        aligned = geometry.align_projections(problem.base, solution.delta, problem.parts, strength=strength)
    return Solution(aligned, told)


def _regularizer(problem: Problem, dials: Dials) -> Float[Tensor, "d_in d_in"]:
    matrix = scaled_kept_moment(problem, dials)
    if conflict := float(dials["conflict_strength"]):
        shared = [
            spectral.shared_direction(target.weights @ target.features, target.weights @ neutral)
            for target in problem.statistics.targets
            for neutral in target.neutrals
        ]
        energy = float(torch.trace(problem.statistics.retained.second_moment))
        matrix = matrix + conflict * energy * spectral.conflict_gate(torch.stack(shared, dim=1))
    return matrix


def row_weights(problem: Problem, dials: Dials) -> tuple[Float[Tensor, "rows targets"], dict[str, Any]]:
    """Returns α and a report on it, in the precision the solve will use; without the decoupler 1 and no report."""
    targets = problem.statistics.targets
    if dials["row_weights"] == "uniform":
        return problem.base.new_ones(len(problem.base), 1).expand(-1, len(targets)), {}
    rank = row_systems.usable_rank(targets, _rank(dials))
    alpha = _contrasts(problem, row_systems.precision(len(targets), rank=rank, width=problem.base.shape[1]))
    noise = decoupler.spreading_noise(alpha) if dials["noise"] == "auto" else float(dials["noise"])
    histogram = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64, device=alpha.device)
    for rows in problem.parts.values():  # in place: at thousands of targets α is the largest thing in memory
        information = decoupler.mutual_information(alpha[rows], noise)
        if dials["row_weights"] == "shared":
            information = information.max(dim=1, keepdim=True).values.expand_as(information)
        alpha[rows] = decoupler.relevance(information, floor=float(dials["floor"]))
        bins = (alpha[rows] * HISTOGRAM_BINS).long().clamp_(0, HISTOGRAM_BINS - 1)
        histogram += torch.bincount(bins.flatten(), minlength=HISTOGRAM_BINS)
    report = {
        "noise": noise,
        "row_weight_histogram": histogram.tolist(),
        "mean_row_weight": float(alpha.mean()),
        "untouched_rows": int((alpha == 0).all(dim=1).sum()),
    }
    return alpha, report


def _contrasts(problem: Problem, dtype: torch.dtype) -> Float[Tensor, "rows targets"]:
    targets, rows = problem.statistics.targets, decoupler.unit_rows(problem.base, dtype)
    kept = decoupler.directions_kept(len(targets))
    contrasts = rows.rows.new_empty(len(problem.base), len(targets))
    for place, batch in target_batches(targets):
        contrasts[:, place] = decoupler.nearest_contrasts(rows, batch, kept=kept)
    return contrasts


def _solve_rows(
    problem: Problem, regularizer: solver.Regularizer, *, alpha: Float[Tensor, "rows targets"], dials: Dials
) -> Solution:
    if dials["row_weights"] == "per_target":
        return _solve_rows_per_target(problem, regularizer, alpha=alpha, dials=dials)
    statistics = problem.statistics
    if dials["rank"] == "auto":
        gains = row_systems.slot_gains(regularizer, statistics.targets)
        strengths, told = _balanced(problem, regularizer, gains, dials)
        gram, shift = slot_moments(statistics.weighted(strengths.tolist()))
    else:
        factors = row_systems.compress_slots(regularizer, statistics.targets, rank=_rank(dials))
        strengths, told = _balanced(problem, regularizer, factors.gains, dials)
        gram, shift = factors.weighted(strengths).moments()
    if dials["row_weights"] == "uniform":
        return Solution.of_map(problem.base, solver.shared_map(regularizer, slots=gram, shift=shift), told)
    delta = solver.solve_shared_rows(problem.base, regularizer, slots=gram, shift=shift, row_weights=alpha[:, 0])
    return Solution(delta, told)


def _solve_rows_per_target(
    problem: Problem, regularizer: solver.Regularizer, *, alpha: Float[Tensor, "rows targets"], dials: Dials
) -> Solution:
    factors = row_systems.compress_slots(regularizer, problem.statistics.targets, rank=_rank(dials))
    strengths, told = _balanced(problem, regularizer, factors.gains, dials)
    factors = factors.weighted(strengths)  # rather than α: what all rows share is solved at once
    targets, rank, width = factors.features.shape
    chosen = dials["own_directions"]
    own = row_systems.own_directions(targets, rank=rank, width=width) if chosen == "auto" else int(chosen)
    solution = row_systems.solve_rows_per_target(problem.base, regularizer, factors=factors, row_weights=alpha, own=own)
    precision = {
        "own_directions": min(own, rank),
        "solver_error": solution.error,
        "solver_iterations": solution.iterations,
    }
    return Solution(solution.delta, {**told, **precision})


def _balanced(
    problem: Problem, regularizer: solver.Regularizer, gains: Float[Tensor, " targets"], dials: Dials
) -> tuple[Float[Tensor, " targets"], dict[str, Any]]:
    """Returns the strengths to solve with, and how far they take each target if the dials ask for that."""
    units = gains.mean().expand_as(gains) if dials["balance"] == "none" else gains
    strengths = divided(float(dials["erasure_strength"]), units)
    if dials["balance"] != "answers":
        return strengths, {}
    found = carry_equally(
        problem.base_moment, regularizer, problem.statistics, start=strengths, aim=float(dials["reach"])
    )
    return found.strengths, found.told(problem.statistics.targets)


def _rank(dials: Dials) -> int:
    return 1 if dials["rank"] == "auto" else int(dials["rank"])


METHOD = Method("scapre", "per-channel relevance, protected by the second moment of retained text", DIALS, _solve)
