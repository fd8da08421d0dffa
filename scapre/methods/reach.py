"""How far targets' answers go towards other names' answers in company, and strengths that carry all equally far.

What a target's answer loses depends on who else is unlearned: fifty targets get in each other's way, and some more than
others. With e the feature of a bare name's end, and Δ the solution for strengths η_k (every channel taking part),

    p_k = max_o ⟨W0 (e_o − e_k), Δ e_k⟩ / ‖W0 (e_o − e_k)‖²

is how far target k's answer has gone towards that of a retained name o, or of the empty prompt: 0 not at all, 1 all the
way. With B = W0ᵀW0 no row is needed: W0ᵀΔ = B N (G0 + S)⁻¹ (see `scapre.solver`).

Guarantees:
    1. The same input gives the same strengths: the number of rounds is fixed.
    2. No strength leaves `WIDEST` times the one it started from, either way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scapre.methods.base import slot_moments
from scapre.moments import NameEnds, Statistics, TargetSlots
from scapre.solver import Regularizer, cholesky

ROUNDS = 5
WIDEST = 6.0
STEP = 0.7
"""Exponent of the correction: with 1, targets that are in each other's way overshoot."""
LEAST, MOST = 0.05, 0.95
"""Bounds of p in a correction; beyond them its odds say little."""
SAME = 1e-12
"""Squared distance below which two answers count as the same, relative to their own squares."""


@dataclass(frozen=True)
class Reach:
    """Strengths, and where they take the targets."""

    strengths: Float[Tensor, " targets"]
    gone: Float[Tensor, " targets"]
    """p of every target."""

    def told(self, targets: Sequence[TargetSlots]) -> dict[str, dict[str, float]]:
        """Returns what diagnostics say of it."""
        return {"answers_gone": dict(zip((target.name for target in targets), self.gone.tolist(), strict=True))}


def divided(strength: float, units: Float[Tensor, " targets"]) -> Float[Tensor, " targets"]:
    """Returns η_k = η / γ_k; 0 for a target without any feature, which has nothing to lose."""
    return torch.where(units > 0, strength / units, 0.0)


def carry_equally(
    base_moment: Float[Tensor, "d_in d_in"],
    regularizer: Regularizer,
    statistics: Statistics,
    *,
    start: Float[Tensor, " targets"],
    aim: float,
) -> Reach:
    """Returns strengths with which every target's p is about `aim`, found from `start` in a few rounds.

    Args:
        base_moment: B = W0ᵀW0.
        regularizer: G0.
        statistics: targets, in the order of `start`, and the ends of names.
        start: η_k to start from; a target whose η_k is 0 keeps it.
        aim: p wanted, between 0 and 1.
    """
    ways = _Ways.between(statistics.ends, base_moment)
    return equalize(
        lambda strengths: ways.gone(_moved(base_moment, regularizer, statistics, strengths)), start=start, aim=aim
    )


def equalize(
    gone: Callable[[Float[Tensor, " targets"]], Float[Tensor, " targets"]],
    *,
    start: Float[Tensor, " targets"],
    aim: float,
) -> Reach:
    """Returns strengths for which `gone`, how far each target goes with given strengths, is about `aim` for all."""
    strengths, wanted = start, _odds(start.new_tensor(aim))
    for _ in range(ROUNDS):
        factor = (wanted / _odds(gone(strengths))) ** STEP
        strengths = torch.minimum(torch.maximum(strengths * factor, start / WIDEST), start * WIDEST)
    return Reach(strengths, gone(strengths))


@dataclass(frozen=True)
class _Ways:
    """The ways from each target to each retained name."""

    ends: NameEnds
    squared: Float[Tensor, "targets names"]
    """‖W0 (e_o − e_k)‖²; infinite where the two are the same text to the model."""

    @classmethod
    def between(cls, ends: NameEnds, base_moment: Float[Tensor, "d_in d_in"]) -> "_Ways":
        answers = ends.targets @ base_moment
        own = (answers * ends.targets).sum(dim=1).unsqueeze(1)
        others = ((ends.retained @ base_moment) * ends.retained).sum(dim=1)
        squared = own + others - 2.0 * answers @ ends.retained.mT
        return cls(ends, torch.where(squared > SAME * (own + others), squared, torch.inf))

    def gone(self, moved: Float[Tensor, "targets d_in"]) -> Float[Tensor, " targets"]:
        """Returns p of every target, given W0ᵀΔ e_k."""
        along = moved @ self.ends.retained.mT - (moved * self.ends.targets).sum(dim=1).unsqueeze(1)
        return (along / self.squared).max(dim=1).values


def _moved(
    base_moment: Float[Tensor, "d_in d_in"],
    regularizer: Regularizer,
    statistics: Statistics,
    strengths: Float[Tensor, " targets"],
) -> Float[Tensor, "targets d_in"]:
    """Returns W0ᵀΔ e_k for every target."""
    slots, shift = slot_moments(statistics.weighted(strengths.tolist()))
    factor = cholesky(regularizer.matrix + slots)
    return (base_moment @ (shift @ torch.cholesky_solve(statistics.ends.targets.mT, factor))).mT


def _odds(share: Float[Tensor, "*targets"]) -> Float[Tensor, "*targets"]:
    bounded = share.clamp(LEAST, MOST)
    return bounded / (1.0 - bounded)
