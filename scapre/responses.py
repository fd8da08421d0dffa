"""How far responses moved, from the rows' second moments: no slot ever meets a row.

Legend: W0 the base rows, Δ the change, p and q two features. Summed over all rows,

    ‖W0 p + Δ q‖² = pᵀ B p + 2 pᵀ X q + qᵀ D q,   B = W0ᵀW0,   X = W0ᵀΔ,   D = ΔᵀΔ,

so that thousands of slots cost d_in² each instead of rows × d_in. Exact to rounding of the larger terms: a distance
below 1e-7 of what it is compared with is noise.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from scapre.moments import Outputs, Retained, TargetSlots
from scapre.row_products import cross_moments


@dataclass(frozen=True)
class ResponseMoments:
    """Second moments of base rows and change."""

    base: Float[Tensor, "d_in d_in"]
    """B = W0ᵀW0."""
    cross: Float[Tensor, "d_in d_in"]
    """X = W0ᵀΔ."""
    change: Float[Tensor, "d_in d_in"]
    """D = ΔᵀΔ."""

    @classmethod
    def of(cls, base: Float[Tensor, "rows d_in"], delta: Float[Tensor, "rows d_in"]) -> "ResponseMoments":
        """Returns the moments of all rows together."""
        return cls(*cross_moments((base, base), (base, delta), (delta, delta)))

    @classmethod
    def of_map(
        cls, base_moment: Float[Tensor, "d_in d_in"], shared_map: Float[Tensor, "d_in d_in"]
    ) -> "ResponseMoments":
        """Returns the moments where Δ = W0 M, given B."""
        crossed = base_moment @ shared_map
        return cls(base_moment, crossed, shared_map.mT @ crossed)

    def squared(
        self, before: Float[Tensor, "slots d_in"], after: Float[Tensor, "slots d_in"]
    ) -> Float[Tensor, " slots"]:
        """Returns ‖W0 p + Δ q‖² for every pair of a p in `before` and a q in `after`."""
        crossed = 2.0 * (before @ self.cross) + after @ self.change
        return ((before @ self.base * before).sum(dim=1) + (crossed * after).sum(dim=1)).clamp_min(0.0)

    def residual(self, target: TargetSlots) -> float:
        """Returns how far the target answers from its anchor, after over before: 0 is forgotten, 1 untouched."""
        gap = target.features - target.anchors
        left = target.weights @ self.squared(gap, target.features)
        return root_ratio(left, target.weights @ self._base_squared(gap))

    def neighbour_change(self, target: TargetSlots) -> float:
        """Returns how far the nearest neighbour's response moved, in units of its distance to the target's."""
        neighbour = target.neutrals[0]
        moved = (neighbour @ self.change * neighbour).sum(dim=1).clamp_min(0.0)
        return root_ratio(target.weights @ moved, target.weights @ self._base_squared(target.features - neighbour))

    def retained_change(self, second_moment: Float[Tensor, "d_in d_in"]) -> float:
        """Returns how far responses to text of this second moment moved, in units of what they were.

        Σ_i w_iᵀ K w_i = Σ K ∘ (Σ_i w_i w_iᵀ), so that no row is touched again.
        """
        moved, before = ((second_moment * rows).sum().clamp_min(0.0) for rows in (self.change, self.base))
        return root_ratio(moved, before)

    def _base_squared(self, features: Float[Tensor, "slots d_in"]) -> Float[Tensor, " slots"]:
        return (features @ self.base * features).sum(dim=1).clamp_min(0.0)


@dataclass(frozen=True)
class MemoryResponses:
    """The same of a memory, in units of what its layer gives out, which is more than the memory's own answer."""

    delta: Float[Tensor, "rows d_in"]
    retained: Retained

    def residual(self, target: TargetSlots) -> float:
        """Returns how much of a target's shifts is left to do: 0 is forgotten, 1 untouched."""
        outputs = _outputs(target)
        left = target.features @ self.delta.mT - outputs.shifts
        return _over(target, left, outputs.shifts)

    def neighbour_change(self, target: TargetSlots) -> float:
        """Returns how far the nearest neighbour's output moved, in units of its distance to the target's."""
        outputs = _outputs(target)
        return _over(target, target.neutrals[0] @ self.delta.mT, outputs.target - outputs.neutral)

    def retained_change(self, second_moment: Float[Tensor, "d_in d_in"]) -> float:
        """Returns how far outputs to text of this second moment moved, in units of those to all retained text."""
        moved = float((self.delta @ second_moment * self.delta).sum().clamp_min(0.0))
        return math.sqrt(moved / self.retained.output_energy)


def _outputs(target: TargetSlots) -> Outputs:
    if target.outputs is None:
        raise ValueError("expected slots of a memory, with what its layer gives out, found features alone")
    return target.outputs


def _over(target: TargetSlots, moved: Float[Tensor, "slots d"], reference: Float[Tensor, "slots d"]) -> float:
    return root_ratio(target.weights @ moved.square().sum(dim=1), target.weights @ reference.square().sum(dim=1))


def root_ratio(squared: Float[Tensor, ""], reference: Float[Tensor, ""]) -> float:
    """Returns the root of `squared` over `reference`; 0 if the reference is."""
    return float((squared / reference).sqrt()) if float(reference) > 0 else 0.0
