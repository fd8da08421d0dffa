"""ScaPre as its released code solves it: there one Cholesky factorization per row, here all rows at once, and seeded.

Row i of a projection is the answer of M_i w_i = b_i, pulled back towards w0_i:

    M_i = (λ+μ) I + η (R + C Cᵀ + S + α_i Π),   b_i = (λ+μ) w0_i + η m_i Σ_k Σ_t (w0_iᵀ c'_kt) c_kt

C holds a column per target, S = Σ c cᵀ over all slots, R is the gate of eq. 4 on raw columns, Π the projector on C's
span, μ the entropy factor of the projection, MI_i the mutual information of row i (maximum over targets), z its
standard score in the projection, m_i = sigmoid(z_i / 0.7)^p the mask, α_i = MI_i / max MI. η = 1 is what was released.

The released anchor, a blank, is the empty prompt to the tokenizer. Known flaws, kept: the mask is on the right-hand
side but not on S; nothing retained enters; Π and R are without effect.

Unknown without its paper's appendix: μ, the pull-back and the estimator's details. Chosen: μ is the mean entropy of the
rows' energy over its maximum; the pull-back restores one fixed share of every row; MI comes from n noisy copies of the
target's and of the anchor's mean slot, fired above the median of all 2n, so that it takes only n + 1 values.

Randomness consumed: one generator of its own, seeded by the dial `seed`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scapre import solver, spectral
from scapre.determinism import Stopwatch, run_parts, side_by_side
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
from scapre.row_products import row_blocks

SMALLEST_DEVIATION = 1e-12
"""Standard deviation of MI below which all rows count as equal."""

DIALS: Mapping[str, Dial] = {
    **PUBLISHED_READING_DIALS,
    "slots": replace(PUBLISHED_READING_DIALS["slots"], default=77),
    "erasure_strength": Dial(1.0, "η: weight of the targets; 0 leaves every weight as it is", 0),
    "ridge": Dial(0.5, "λ: weight of ‖W − W0‖²", 0),
    "mask_power": Dial(8.0, "p: sharpness of the mask on the right-hand side", 0),
    "mask_temperature": Dial(0.7, "what the standard score of MI is divided by in the mask", 1e-3),
    "samples": Dial(5, "n: noisy copies of the target and of the anchor, each", 1, 1000),
    "noise": Dial(0.01, "deviation of the noise on the copies", 0),
    "pull_back": Dial(0.3, "share of the change taken back after the solve", 0, 1),
    "seed": Dial(0, "seed of the noise", 0),
}


@dataclass(frozen=True)
class RowSystems:
    """Everything the rows' systems are made of."""

    shared: Float[Tensor, "d_in d_in"]
    """η (R + C Cᵀ + S)."""
    wanted: Float[Tensor, "d_in d_in"]
    """η Σ c' cᵀ."""
    span: Float[Tensor, "d_in directions"]
    """Orthonormal basis of C's columns: Π = span spanᵀ."""
    shifts: Float[Tensor, " projections"]
    """λ + μ of each projection."""
    mask: Float[Tensor, " rows"]
    row_weights: Float[Tensor, " rows"]
    """η α."""


def build_systems(problem: Problem, dials: Dials) -> RowSystems:
    """Returns what the rows' systems are made of, noise drawn from a generator seeded by `dials`."""
    strength, columns = float(dials["erasure_strength"]), mean_features(problem.statistics)
    gram, shift = slot_moments(problem.statistics, averaged=False)
    information = sampled_information(problem, dials)
    parts = problem.parts.values()
    on_cpu = problem.base.is_cpu
    entropies = list(side_by_side(lambda rows: entropy_factor(problem.base[rows]), parts, on_cpu=on_cpu))
    return RowSystems(
        shared=strength * (spectral.conflict_gate(columns, normalized=False) + columns @ columns.mT + gram),
        wanted=strength * (shift + gram),
        span=solver.orthonormal_basis(columns),
        shifts=float(dials["ridge"]) + torch.stack(entropies),
        mask=torch.cat([_mask(information[rows], dials) for rows in parts]),
        row_weights=strength * torch.cat([_relative(information[rows]) for rows in parts]),
    )


def solve_systems(problem: Problem, systems: RowSystems) -> Float[Tensor, "rows d_in"]:
    """Returns every row's w_i = M_i⁻¹ b_i.

    With G the system without Π and Zᵀ G⁻¹ Z = diag(κ) for Z = span E: X0 = b G⁻¹ and w = X0 − [(X0 Z) ∘ F] (G⁻¹ Z)ᵀ,
    F_ij = α_i / (1 + α_i κ_j): a factorization per projection in place of one per row.
    """
    edited = torch.empty_like(problem.base)
    left, right = solver.thin_factors(systems.wanted)
    inverses = solver.shifted_inverses(systems.shared, systems.shifts)
    spans = inverses.times(systems.span)
    kappa, turn = torch.linalg.eigh(systems.span.mT @ spans)
    solved = spans @ turn

    def solve(part: tuple[int, slice]) -> None:
        place, rows = part
        base, shift, inverse = problem.base[rows], systems.shifts[place], inverses.inverse(place)
        weights = systems.row_weights[rows].unsqueeze(1)
        # rows × d_in is what this is bound by: two looks at what is read, two at what is written
        sides = base @ torch.cat([shift * solved[place], left], dim=1)
        along, wanted = sides.tensor_split([kappa.shape[1]], dim=1)
        wanted.mul_(systems.mask[rows].unsqueeze(1))
        along.addmm_(wanted, right @ solved[place])  # X0 Z
        along.mul_(weights / (1.0 + weights * kappa[place])).neg_()
        answer = torch.mm(base, shift * inverse, out=edited[rows])
        answer.addmm_(sides, torch.cat([solved[place].mT, right @ inverse]))

    run_parts(solve, enumerate(problem.parts.values()), on_cpu=edited.is_cpu)
    return edited


def sampled_information(problem: Problem, dials: Dials) -> Float[Tensor, " rows"]:
    """Returns MI_i in nats, the maximum over targets, from n noisy copies of target and anchor each."""
    count, source = int(dials["samples"]), torch.Generator().manual_seed(int(dials["seed"]))
    table = information_table(count).to(problem.base)
    targets, highest = problem.statistics.targets, problem.base.new_zeros(len(problem.base))
    shape = (2, count, problem.base.shape[1])
    for _, batch in target_batches(targets):
        pairs = torch.stack([torch.stack([t.weights @ t.features, t.weights @ t.anchors]) for t in batch])
        noise = torch.stack([torch.randn(shape, generator=source, dtype=torch.float64, device="cpu") for _ in batch])
        samples = pairs.unsqueeze(2) + float(dials["noise"]) * noise.to(pairs)
        columns = samples.movedim(0, 2).flatten(0, 2).mT  # copy by copy, all targets side by side

        def compare(rows: slice, columns: Tensor = columns) -> None:
            fired = _fired_copies((problem.base[rows] @ columns).unflatten(1, (2, count, -1)))
            highest[rows] = torch.maximum(highest[rows], table[fired].max(dim=1).values)

        run_parts(compare, row_blocks(len(highest)), on_cpu=highest.is_cpu)
    return highest


def _fired_copies(responses: Float[Tensor, "rows 2 copies targets"]) -> Int[Tensor, "rows targets"]:
    """Returns how many of each target's n copies answer more than the median of them and the anchor's n.

    Where the two do not overlap, 0 stands for n as well, which tells as much. Only where they do are they sorted.
    """
    target, anchor = responses.unbind(1)
    copies, overlap = target.shape[1], (target.amin(1) <= anchor.amax(1)) & (target.amax(1) >= anchor.amin(1))
    mixed = responses.movedim(3, 1)[overlap]
    middle = mixed.flatten(1).sort(dim=1).values[:, copies - 1 : copies + 1].mean(dim=1, keepdim=True)
    fired = torch.zeros_like(overlap, dtype=torch.int64)
    fired[overlap] = (mixed[:, 0] > middle).sum(dim=1)
    return fired


def information_table(count: int) -> Float[Tensor, " outcomes"]:
    """Returns MI in nats when j = 0 … n of the target's n copies fire, and so n − j of the anchor's."""
    error = torch.arange(count + 1, dtype=torch.float64, device="cpu") / count
    return math.log(2.0) - torch.special.entr(error) - torch.special.entr(1.0 - error)


def entropy_factor(weight: Float[Tensor, "rows d_in"]) -> Float[Tensor, ""]:
    """Returns the mean entropy of the rows' energy w² / ‖w‖² in units of its maximum, in [0, 1]."""
    energy = weight.square()
    share = energy / energy.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    return torch.special.entr(share).sum(dim=1).mean() / math.log(max(weight.shape[1], 2))


def _mask(information: Float[Tensor, " rows"], dials: Dials) -> Float[Tensor, " rows"]:
    centred = information - information.mean()
    deviation = centred.square().mean().sqrt()
    score = centred / deviation if float(deviation) > SMALLEST_DEVIATION else torch.zeros_like(centred)
    return torch.sigmoid(score / float(dials["mask_temperature"])) ** float(dials["mask_power"])


def _relative(information: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    return information / information.max().clamp_min(torch.finfo(information.dtype).tiny)


def _solve(problem: Problem, dials: Dials, clock: Stopwatch) -> Solution:
    if not problem.statistics.targets or float(dials["erasure_strength"]) == 0.0:
        return Solution(torch.zeros_like(problem.base), {"condition_number": 1.0})
    with clock.phase("statistics"):
        systems = build_systems(problem, dials)
        condition = solver.factorize(solver.add_ridge(systems.shared, float(systems.shifts.min()))).condition
    with clock.phase("solve"):
        edited = solve_systems(problem, systems)
    with clock.phase("refine"):
        delta = edited.sub_(problem.base).mul_(1.0 - float(dials["pull_back"]))
    return Solution(delta, {"condition_number": condition, "mean_mask": float(systems.mask.mean())})


METHOD = Method(
    "scapre-released",
    "ScaPre's released code: a mask on the right-hand side only",
    DIALS,
    _solve,
    leads_to_anchor=False,  # rows outside of the mask answer the target with nothing at all
)
