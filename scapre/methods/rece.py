"""RECE (Gong et al., ECCV 2024): UCE, then the embeddings that bring a target back are found and erased as well.

After each solve the attack on every target slot c is closed-form as well,

    c* = argmin_x ‖W x − W0 c‖² + ρ ‖x‖² = (WᵀW + ρ I)⁻¹ Wᵀ W0 c   (all rows on top of each other),

and c* joins the slots of `scapre.methods.uce`, sent to the same anchor; then the least squares are solved again. Every
row is multiplied by the same matrix, so rounds cost nothing per row: only W0ᵀW0 enters.

Guarantees:
    1. Every round solves one least-squares problem over all embeddings found so far, so no round undoes another.
    2. With rounds = 0 it is UCE.

Unknown in the publication: the unit of ρ, and from which weights a round starts. Chosen: ρ in units of the mean
eigenvalue of W0ᵀW0, every round from W0. Its extra term that keeps c* from disturbing other text is what ρ does here.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from scapre import solver
from scapre.determinism import Stopwatch
from scapre.errors import SingularSystemError
from scapre.methods import uce
from scapre.methods.base import Dial, Dials, Method, Problem, Solution, slot_batches, slot_moments
from scapre.moments import Statistics
from scapre.responses import ResponseMoments

DIALS: Mapping[str, Dial] = {
    **uce.DIALS,
    "rounds": Dial(3, "number of times the attacks are derived and erased; 0 is UCE", 0),
    "attack_ridge": Dial(0.1, "ρ: weight of ‖x‖² in the attack, in units of the mean eigenvalue of W0ᵀW0", 1e-6),
}


def attack_map(moments: ResponseMoments, ridge: float) -> Float[Tensor, "d_in d_in"]:
    """Returns the map c → c* = (WᵀW + ρ I)⁻¹ WᵀW0 c, with ρ = `ridge` times the mean eigenvalue of W0ᵀW0."""
    edited = moments.base + moments.cross + moments.cross.mT + moments.change
    penalty = ridge * float(torch.trace(moments.base)) / len(moments.base)
    solved, failed_at = torch.linalg.solve_ex(solver.add_ridge(edited, penalty), moments.base + moments.cross.mT)
    if bool(failed_at):
        raise SingularSystemError("the attack's system is singular, as that of weights that are 0; raise attack_ridge")
    return solver.finite(solved)


def _solve(problem: Problem, dials: Dials, clock: Stopwatch) -> Solution:
    base, statistics = problem.base, problem.statistics
    strength = float(dials["erasure_strength"])
    with clock.phase("statistics"):
        gram, shift = slot_moments(statistics, averaged=False)
        kept = uce.kept_moment(statistics, dials)
        regularizer = solver.factorize(strength * gram + kept)
    regained = []
    with clock.phase("solve"):
        change = uce.edit_map(regularizer, strength * shift)
        for _ in range(int(dials["rounds"]) if statistics.targets and strength else 0):
            moments = ResponseMoments.of_map(problem.base_moment, change)
            attack = attack_map(moments, float(dials["attack_ridge"]))
            regained.append(_regained_share(statistics, moments, attack))
            for batch in slot_batches(statistics):
                attacks = batch.features @ attack.mT
                gram, shift = gram + attacks.mT @ attacks, shift + (batch.anchors - attacks).mT @ attacks
            regularizer = solver.factorize(strength * gram + kept)
            change = uce.edit_map(regularizer, strength * shift)
        told = {"condition_number": regularizer.condition, "regained_response": regained}
        return Solution.of_map(base, change, told)


def _regained_share(statistics: Statistics, moments: ResponseMoments, attack: Float[Tensor, "d_in d_in"]) -> float:
    """Returns how far the attacks answer from the anchors, in units of the targets' distance before the edit."""
    after = before = 0.0
    for batch in slot_batches(statistics):
        attacks, gap = batch.features @ attack.mT, batch.features - batch.anchors
        after += float(moments.squared(attacks - batch.anchors, attacks).sum())
        before += float(moments.squared(gap, torch.zeros_like(gap)).sum())
    return (after / before) ** 0.5 if before > 0 else 0.0


METHOD = Method("rece", "UCE, and the embeddings that would bring a target back erased in turn (RECE)", DIALS, _solve)
