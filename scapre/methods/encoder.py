"""The default method's objective on the text encoder's memory instead of the projections: for many targets at once.

Minimized, with h_kt what the memory W reads in slot t of target k, and s_kt = o'_kt − o_kt from what its layer gives
out there to what it gives out for the anchor (`scapre.memories`):

    tr Δ G0 Δᵀ + Σ_k η_k Σ_t ω_kt ‖Δ h_kt − s_kt‖²,   Σ_t ω_kt = 1
    G0 = λ (E/d_ff) I + λ_p K0,  K0 the second moment of h over retained text,  E = tr K0
    η_k = η / γ_k,  γ_k the largest eigenvalue of S_k f = γ G0 f,  S_k = Σ_t ω_kt h_kt h_ktᵀ

so that Δ = (Σ_k η_k Σ_t ω_kt s_kt h_ktᵀ) (G0 + Σ_k η_k S_k)⁻¹. Each of several encoders gets its own Δ. With
s = W0 (h' − h) the answer would be that of `scapre.methods.scapre`, and is, for slots without outputs.

Whoever puts in another text encoder undoes the edit, as does whatever reads the encoder before that layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scapre import row_systems, solver
from scapre.determinism import Stopwatch
from scapre.methods.base import READING_DIALS, Dial, Dials, Method, Problem, Solution, scaled_kept_moment
from scapre.methods.reach import divided, equalize
from scapre.moments import TargetSlots, target_batches
from scapre.row_products import add_parts, symmetric_product

DIALS: Mapping[str, Dial] = {
    **READING_DIALS,
    "erasure_strength": Dial(
        3.0,
        "η: a lone target keeps 1/(1 + η) of its strongest direction, and more of the rest; 0 leaves every weight as "
        "it is",
        0,
    ),
    "balance": Dial(
        "targets",
        "η_k: targets divides η by each target's γ, so that all alone would lose the same share; answers then turns "
        "them up or down until each target's outputs have gone `reach` of the way to its anchor's: for crowds",
        choices=("targets", "answers"),
    ),
    "reach": Dial(
        0.6,
        "p: where answers takes every target's outputs, in company, with η_k up to six times larger or smaller",
        0,
        1,
        read_with=("balance", ("answers",)),
    ),
    "ridge": Dial(0.1, "λ: weight of ‖W − W0‖², in units of the mean energy of what the memory reads, per number", 0),
    "retention_strength": Dial(30.0, "λ_p: weight of K0, the second moment of retained text", 0),
}


def _solve(problem: Problem, dials: Dials, clock: Stopwatch) -> Solution:
    targets = problem.statistics.targets
    if not targets:
        return Solution(torch.zeros_like(problem.base), {"condition_number": 1.0})
    with clock.phase("statistics"):
        regularizer = solver.factorize(scaled_kept_moment(problem, dials))
        gains = row_systems.slot_gains(regularizer, targets)
        strengths = divided(float(dials["erasure_strength"]), gains)
    told: dict[str, Any] = {"condition_number": regularizer.condition}
    with clock.phase("solve"):
        if dials["balance"] == "answers":
            found = equalize(
                lambda tried: _gone(problem, _change(problem, regularizer, tried)),
                start=strengths,
                aim=float(dials["reach"]),
            )
            strengths = found.strengths
            told |= found.told(targets)
        return Solution(_change(problem, regularizer, strengths), told)


def _change(
    problem: Problem, regularizer: solver.Regularizer, strengths: Float[Tensor, " targets"]
) -> Float[Tensor, "rows d_in"]:
    """Returns Δ."""
    slots, answers = _moments(problem, strengths)
    return solver.shared_map(regularizer, slots=slots, shift=answers)


def _gone(problem: Problem, delta: Float[Tensor, "rows d_in"]) -> Float[Tensor, " targets"]:
    """Returns p_k = Σ_t ω_kt ⟨Δ h_kt, s_kt⟩ / Σ_t ω_kt ‖s_kt‖², how far each target's outputs go to its anchor's."""
    gone = []
    for target in problem.statistics.targets:
        shifts = _shifts(problem, target)
        along = target.weights @ ((target.features @ delta.mT) * shifts).sum(dim=1)
        gone.append(along / (target.weights @ shifts.square().sum(dim=1)).clamp_min(torch.finfo(along.dtype).tiny))
    return torch.stack(gone)


def _moments(
    problem: Problem, strengths: Float[Tensor, " targets"]
) -> tuple[Float[Tensor, "d_in d_in"], Float[Tensor, "rows d_in"]]:
    """Returns Σ η ω h hᵀ and Σ η ω s hᵀ."""
    width = problem.base.shape[1]

    def multiply(placed: tuple[slice, Sequence[TargetSlots]]) -> tuple[Tensor, Tensor]:
        place, batch = placed
        features = torch.cat([target.features for target in batch])
        shifts = torch.cat([_shifts(problem, target) for target in batch])
        weights = torch.cat([eta * target.weights for eta, target in zip(strengths[place], batch, strict=True)])
        weighted = weights.unsqueeze(1) * features
        return symmetric_product(features, weighted), shifts.mT @ weighted

    zeros = (problem.base.new_zeros(width, width), torch.zeros_like(problem.base))
    slots, answers = add_parts(multiply, target_batches(problem.statistics.targets), zeros)
    return slots, answers


def _shifts(problem: Problem, target: TargetSlots) -> Float[Tensor, "slots rows"]:
    if target.outputs is None:
        return (target.anchors - target.features) @ problem.base.mT
    return target.outputs.shifts


METHOD = Method(
    "scapre-encoder",
    "the same in the text encoder's last MLP: for many targets at once on models that read text by CLIP alone",
    DIALS,
    _solve,
    edits_memories=True,
)
