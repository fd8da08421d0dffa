"""Systems that differ from row to row: every row has its own weight for every target.

Legend as in `scapre.solver`; f_kj the directions of target k's slots (S_k = Σ_j f_kj f_kjᵀ), a_kj the anchors turned
the same way, α_ik row weights and ᾱ_i their mean over targets. Minimized over δ_i = w_i − w0_i is, row by row,

    δᵀ G0 δ + Σ_k [ α_ik Σ_{j ≤ own} (f_kjᵀ w − a_kjᵀ w0)² + ᾱ_i Σ_{j > own} (f_kjᵀ w − a_kjᵀ w0)² ].

Two ways to the same answer. Few unknowns: one Cholesky factorization per row (Woodbury). Many: one eigendecomposition
for all rows, S T = G0 T Λ with Tᵀ G0 T = I, turns the part that all targets share into the diagonal 1 + ᾱ_i λ_j, and
conjugate gradients, preconditioned by it, do the rest for many rows at once; no row's matrix is ever formed.

Guarantees:
    1. A row whose weights are all 0 gets δ = 0 exactly.
    2. Each row's estimated relative error, in the norm of its own objective, is at most `TOLERANCE` of the precision
       used: float64 while targets × rank ≤ d_in, float32 above. The objective then falls by all that it can, but for a
       share of the square of that.
    3. Memory besides row weights and answer depends on the number of threads, at most four, but not on that of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scapre.determinism import run_parts, side_by_side
from scapre.errors import SingularSystemError
from scapre.moments import TargetSlots, target_batches
from scapre.row_products import row_blocks, symmetric_product, triangular_product
from scapre.solver import Regularizer, finite

TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}
DIRECT_UNKNOWNS = 48
"""Unknowns per row up to which a factorization per row is faster than iterating."""
MOST_ITERATIONS = 300
"""Iterations after which a block's remaining rows are factorized one by one."""
ROWS_AT_ONCE = 1024
MOST_WORKERS = 4
"""Threads, each of which holds some times a block of rows and its targets."""


@dataclass(frozen=True)
class SlotFactors:
    """Every target's slots compressed to `rank` directions, strongest first; directions a target lacks are zero."""

    features: Float[Tensor, "targets rank d_in"]
    anchors: Float[Tensor, "targets rank d_in"]
    gains: Float[Tensor, " targets"]
    """γ_k, the largest eigenvalue of S_k f = γ G0 f: alone and with α = η, a target keeps 1/(1 + ηγ) of itself."""

    def weighted(self, strengths: Float[Tensor, " targets"]) -> "SlotFactors":
        """Returns the same with every target counting `strengths` times as much."""
        root = strengths.sqrt().view(-1, 1, 1)
        return SlotFactors(root * self.features, root * self.anchors, strengths * self.gains)

    def moments(self) -> tuple[Float[Tensor, "d_in d_in"], Float[Tensor, "d_in d_in"]]:
        """Returns S = Σ_kj f fᵀ and N = Σ_kj (a − f) fᵀ."""
        features = self.features.flatten(0, 1)
        return symmetric_product(features, features), (self.anchors.flatten(0, 1) - features).mT @ features


@dataclass(frozen=True)
class RowSolution:
    """All rows' answers and what they cost."""

    delta: Float[Tensor, "rows d_in"]
    error: float
    """Largest estimated relative error of a row, in the norm of its own objective; 0 for a factorization."""
    iterations: int
    """Largest number of iterations of a block of rows."""


def compress_slots(regularizer: Regularizer, targets: Sequence[TargetSlots], *, rank: int) -> SlotFactors:
    """Returns the `rank` combinations of each target's slots that matter most in the metric of G0.

    The slots are turned by the right singular vectors of L⁻¹ C diag(√ω), an orthogonal mixing that leaves the objective
    unchanged, and cut after `rank`: exact when `rank` reaches the number of slots.
    """
    most = usable_rank(targets, rank)
    width = len(regularizer.matrix)
    inverse = _inverse_factor(regularizer, precision(len(targets), rank=most, width=width))
    features = regularizer.matrix.new_zeros(len(targets), most, width)
    anchors = torch.zeros_like(features)

    def turn(placed: tuple[slice, Sequence[TargetSlots]]) -> None:
        chosen, batch = placed
        weights = [target.weights for target in batch]
        columns = _stacked([target.features for target in batch], weights)
        turned = _stacked([target.anchors for target in batch], weights)
        mixing = _strongest(columns, inverse, most)
        features[chosen, : mixing.shape[1]] = mixing @ columns
        anchors[chosen, : mixing.shape[1]] = mixing @ turned

    run_parts(turn, target_batches(targets), on_cpu=features.is_cpu, most=MOST_WORKERS)
    return SlotFactors(features, anchors, _gains(regularizer, features[:, 0]))


def slot_gains(regularizer: Regularizer, targets: Sequence[TargetSlots]) -> Float[Tensor, " targets"]:
    """Returns γ of each target, as `compress_slots` does, where nothing else of it is needed."""
    width = len(regularizer.matrix)
    inverse = _inverse_factor(regularizer, precision(len(targets), rank=1, width=width))
    features = regularizer.matrix.new_zeros(len(targets), width)

    def choose(placed: tuple[slice, Sequence[TargetSlots]]) -> None:
        chosen, batch = placed
        columns = _stacked([target.features for target in batch], [target.weights for target in batch])
        features[chosen] = (_strongest(columns, inverse, 1) @ columns).squeeze(1)

    run_parts(choose, target_batches(targets), on_cpu=features.is_cpu, most=MOST_WORKERS)
    return _gains(regularizer, features)


def _strongest(
    columns: Float[Tensor, "targets slots d_in"], inverse: Float[Tensor, "d_in d_in"], most: int
) -> Float[Tensor, "targets kept slots"]:
    """Returns the orthonormal combinations of each target's slots that are largest in the metric of G0, as L⁻ᵀ rounds.

    Which directions are chosen depends on the precision of that.
    """
    whitened = triangular_product(columns.to(inverse).flatten(0, 1), inverse).unflatten(0, columns.shape[:2])
    vectors = torch.linalg.eigh((whitened @ whitened.mT).double()).eigenvectors
    return vectors.flip(2)[:, :, :most].mT


def _gains(regularizer: Regularizer, strongest: Float[Tensor, "targets d_in"]) -> Float[Tensor, " targets"]:
    """Returns γ = ‖L⁻¹ f‖² in float64: what f is off by, for its choice in float32, counts with its square."""
    return regularizer.whitened(strongest.mT).square().sum(dim=0)


def _inverse_factor(regularizer: Regularizer, dtype: torch.dtype) -> Float[Tensor, "d_in d_in"]:
    """Returns L⁻ᵀ."""
    return regularizer.whitened(torch.eye(len(regularizer.matrix)).to(regularizer.matrix)).mT.to(dtype)


def _stacked(
    slots: Sequence[Float[Tensor, "_ d_in"]], weights: Sequence[Float[Tensor, " _"]]
) -> Float[Tensor, "targets slots d_in"]:
    """Returns √ω times the slots of each target, filled up with zeros."""
    longest = max(len(own) for own in weights)
    stacked = slots[0].new_empty(len(slots), longest, slots[0].shape[1], dtype=torch.float64)
    for row, features, own in zip(stacked, slots, weights, strict=True):
        torch.mul(own.double().sqrt().unsqueeze(1), features, out=row[: len(own)])
        row[len(own) :] = 0.0
    return stacked


def usable_rank(targets: Sequence[TargetSlots], rank: int) -> int:
    """Returns `rank`, or the largest number of slots if no target has as many."""
    return min(rank, max(len(target.weights) for target in targets))


def precision(targets: int, *, rank: int, width: int) -> torch.dtype:
    """Returns the type in which rows are solved: float64 while the features have room for all directions."""
    return torch.float64 if targets * rank <= width else torch.float32


def own_directions(targets: int, *, rank: int, width: int) -> int:
    """Returns how many directions of each target may have row weights of their own: as many as d_in has room for."""
    return rank if targets * rank <= width else max(1, width // targets)


def solve_rows_per_target(
    base: Float[Tensor, "rows d_in"],
    regularizer: Regularizer,
    *,
    factors: SlotFactors,
    row_weights: Float[Tensor, "rows targets"],
    own: int,
) -> RowSolution:
    """Returns Δ when every row has its own weight for every target, on the first `own` directions of each.

    Raises:
        SingularSystemError: a row has no finite, unique answer.
    """
    targets, rank = factors.features.shape[:2]
    own = min(own, rank)
    if own == rank and targets * rank <= DIRECT_UNKNOWNS:
        return RowSolution(_factorize_each_row(base, regularizer, factors, row_weights), 0.0, 0)
    dtype = precision(targets, rank=rank, width=base.shape[1])
    pencil = _turn(regularizer, factors, own, dtype)
    delta = torch.empty_like(base)

    def solve(rows: slice) -> tuple[float, int]:
        block = _Block(pencil, base[rows].to(dtype), row_weights[rows].to(dtype), own)
        answer, errors, steps = _conjugate_gradients(block)
        if bool((stuck := ~(errors <= TOLERANCE[dtype])).any()):
            answer[stuck] = block.factorized(stuck)
            errors = errors.masked_fill(stuck, 0.0)
        delta[rows] = answer @ pencil.back
        return float(errors.max()), steps

    solved = list(side_by_side(solve, row_blocks(len(base), ROWS_AT_ONCE), on_cpu=base.is_cpu, most=MOST_WORKERS))
    error, iterations = (max(found) for found in zip(*solved, strict=True))
    return RowSolution(finite(delta), error, iterations)


@dataclass(frozen=True)
class _Pencil:
    """The factors in the basis T, where G0 is the identity and the part shared by all targets is diagonal."""

    eigenvalues: Float[Tensor, " turned"]
    shared: Float[Tensor, "d_in turned"]
    """N T: what all targets want, W0 N T."""
    features: Float[Tensor, "unknowns turned"]
    """Fᵀ T of the directions with row weights of their own."""
    shift: Float[Tensor, "d_in unknowns"]
    """A − F of the same."""
    back: Float[Tensor, "turned d_in"]
    """Tᵀ."""


def _turn(regularizer: Regularizer, factors: SlotFactors, own: int, dtype: torch.dtype) -> _Pencil:
    features = factors.features.flatten(0, 1)
    shift = (factors.anchors - factors.features).flatten(0, 1)
    half = regularizer.whitened(features.mT)
    eigenvalues, vectors = torch.linalg.eigh(half @ half.mT)
    kept = slice(max(len(eigenvalues) - len(features), 0), None)  # beyond the number of directions all are 0
    basis = torch.linalg.solve_triangular(regularizer.factor.mT, vectors[:, kept], upper=True)
    turned = features @ basis
    chosen = (slice(None), slice(own))
    parts = (
        eigenvalues[kept].clamp_min(0.0),
        shift.mT @ turned,
        turned.unflatten(0, factors.features.shape[:2])[chosen].flatten(0, 1),
        (factors.anchors - factors.features)[chosen].flatten(0, 1).mT,
        basis.mT,
    )
    return _Pencil(*(part.to(dtype).contiguous() for part in parts))


class _Block:
    """Some rows' systems in the basis T: M_i = diag(1 + ᾱ_i λ) + Σ_k (α_ik − ᾱ_i) Σ_j f_kj f_kjᵀ."""

    def __init__(
        self, pencil: _Pencil, base: Float[Tensor, "rows d_in"], weights: Float[Tensor, "rows targets"], own: int
    ) -> None:
        self._pencil = pencil
        mean = weights.mean(dim=1, keepdim=True)
        self._excess = (weights - mean).repeat_interleave(own, dim=1)
        self.diagonal = 1.0 + mean * pencil.eigenvalues
        self.guess = mean * (base @ pencil.shared) / self.diagonal
        """The answer if every target had the row's mean weight."""
        wanted = base @ pencil.shift - self.guess @ pencil.features.mT
        self.residual = wanted.mul_(self._excess) @ pencil.features

    def product(self, vectors: Float[Tensor, "rows turned"]) -> Float[Tensor, "rows turned"]:
        """Returns every row's M_i times its vector."""
        responses = (vectors @ self._pencil.features.mT).mul_(self._excess)
        return torch.addcmul(responses @ self._pencil.features, self.diagonal, vectors)

    def factorized(self, chosen: Bool[Tensor, " rows"]) -> Float[Tensor, "chosen turned"]:
        """Returns the chosen rows' answers by one factorization each, in float64."""
        features = self._pencil.features.double()
        answers = []
        for row in chosen.nonzero().flatten().tolist():
            system = features.mT @ (self._excess[row].double().unsqueeze(1) * features)
            factor, failed_at = torch.linalg.cholesky_ex(system + torch.diag(self.diagonal[row].double()))
            _refuse(failed_at)
            step = torch.cholesky_solve(self.residual[row].double().unsqueeze(1), factor).squeeze(1)
            answers.append((self.guess[row] + step).to(self.guess.dtype))
        return torch.stack(answers)


def _conjugate_gradients(
    block: _Block,
) -> tuple[Float[Tensor, "rows turned"], Float[Tensor, " rows"], int]:
    """Returns the answers, each row's estimated relative error, and the number of steps.

    The estimate is the preconditioned residual in units of the answer's norm, both in the norm of M_i, started from the
    answer to the shared part.
    """
    tiny = torch.finfo(block.guess.dtype).tiny
    answer, residual = block.guess.clone(), block.residual.clone()
    conditioned = residual / block.diagonal
    direction, squared = conditioned.clone(), (residual * conditioned).sum(dim=1, keepdim=True)
    energy = (answer.square() * block.diagonal).sum(dim=1, keepdim=True) + squared
    tolerance, steps = TOLERANCE[answer.dtype], 0
    while steps < MOST_ITERATIONS and bool((squared > tolerance**2 * energy).any()):
        product = block.product(direction)
        length = squared / (direction * product).sum(dim=1, keepdim=True).clamp_min(tiny)
        answer.addcmul_(length, direction)
        residual.addcmul_(length, product, value=-1.0)
        conditioned = residual / block.diagonal
        following = (residual * conditioned).sum(dim=1, keepdim=True)
        direction.mul_(following / squared.clamp_min(tiny)).add_(conditioned)
        squared, steps = following, steps + 1
    return answer, (squared / energy.clamp_min(tiny)).sqrt().squeeze(1), steps


def _factorize_each_row(
    base: Float[Tensor, "rows d_in"],
    regularizer: Regularizer,
    factors: SlotFactors,
    row_weights: Float[Tensor, "rows targets"],
) -> Float[Tensor, "rows d_in"]:
    """Returns Δ by Woodbury: δ_i = G0⁻¹ F D^½ (I + D^½ Γ D^½)⁻¹ D^½ y.

    There Γ = Fᵀ G0⁻¹ F, D = diag(α_i) with each target's weight repeated over its directions, and y = (A − F)ᵀ w0_i.
    """
    stacked, rank = factors.features.flatten(0, 1).mT, factors.features.shape[1]
    shift = factors.anchors.flatten(0, 1).mT - stacked
    solved = torch.cholesky_solve(stacked, regularizer.factor)
    gamma = stacked.mT @ solved
    identity = torch.eye(len(gamma), dtype=gamma.dtype, device=gamma.device)
    delta = torch.empty_like(base)
    for rows in row_blocks(len(base), ROWS_AT_ONCE):
        root = row_weights[rows].double().sqrt().repeat_interleave(rank, dim=1)
        factor, failed_at = torch.linalg.cholesky_ex(identity + root.unsqueeze(2) * gamma * root.unsqueeze(1))
        _refuse(failed_at)
        right = (root * (base[rows] @ shift)).unsqueeze(2)
        delta[rows] = (root * torch.cholesky_solve(right, factor).squeeze(2)) @ solved.mT
    return finite(delta)


def _refuse(failed_at: Int[Tensor, "*rows"]) -> None:
    if bool(failed_at.any()):
        raise SingularSystemError("the rows' systems are not positive definite; raise ridge or lower erasure_strength")
