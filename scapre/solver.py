"""The closed forms: every output row's least squares at once, in float64.

Legend: W0 [rows, d_in] base weights, Δ = W − W0, G0 the regularizer, c a slot's feature, c' its anchor's, ω its weight,
S = Σ ω c cᵀ, N = Σ ω (c' − c) cᵀ (so that V − W0 S = W0 N for responses v = W0 c'), α row weights. Minimized is

    Σ_i { (w_i − w0_i)ᵀ G0 (w_i − w0_i) + Σ_k α_ik Σ_t ω_kt (w_iᵀ c_kt − w0_iᵀ c'_kt)² }

Guarantees:
    1. A row with α = 0 gets Δ = 0 exactly.
    2. An answer is finite, or `SingularSystemError` says which dial to raise.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scapre.errors import SingularSystemError
from scapre.row_products import map_columns, map_rows, symmetric_product

WORST_CONDITION = 1e13
"""Beyond it a float64 solution has fewer than three correct digits."""
RANK_TOLERANCE = 1e-13
"""Singular values below this fraction of the largest count as 0."""
COLUMNS_PER_SAMPLE = 8
"""One column of so many is looked at first for the span of all."""
LONGEST_SERIES = 16
"""Terms beyond which a factorization for every shift is cheaper."""


@dataclass(frozen=True)
class Regularizer:
    """G0 with its Cholesky factor: G0 = L Lᵀ."""

    matrix: Float[Tensor, "d_in d_in"]
    factor: Float[Tensor, "d_in d_in"]
    condition: float
    """Ratio of the largest to the smallest eigenvalue."""

    def whitened(self, columns: Float[Tensor, "d_in columns"]) -> Float[Tensor, "d_in columns"]:
        """Returns L⁻¹ times `columns`."""
        return map_columns(lambda block: torch.linalg.solve_triangular(self.factor, block, upper=False), columns)


def add_ridge(matrix: Float[Tensor, "d_in d_in"], amount: float) -> Float[Tensor, "d_in d_in"]:
    """Returns `matrix` + `amount` I."""
    return matrix + amount * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def factorize(matrix: Float[Tensor, "d_in d_in"]) -> Regularizer:
    """Returns G0 with its factor.

    Raises:
        SingularSystemError: G0 is not positive definite to working precision.
    """
    symmetric = (matrix.double() + matrix.double().mT) / 2.0
    if not bool(torch.isfinite(symmetric).all()):
        raise SingularSystemError(
            "expected finite numbers in the regularizer, found NaN or infinity; check the text encoder's weights, and "
            "lower what multiplies them (ridge and strengths)"
        )
    eigenvalues = torch.linalg.eigvalsh(symmetric)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    condition = largest / smallest if smallest > 0 else float("inf")
    if not condition < WORST_CONDITION:
        raise SingularSystemError(
            f"expected a regularizer with condition below {WORST_CONDITION:.0e}, found {condition:.1e} "
            f"(eigenvalues {smallest:.1e} to {largest:.1e}); raise the dial ridge"
        )
    return Regularizer(symmetric, torch.linalg.cholesky(symmetric), condition)


def solve_shared_rows(
    base: Float[Tensor, "rows d_in"],
    regularizer: Regularizer,
    *,
    slots: Float[Tensor, "d_in d_in"],
    shift: Float[Tensor, "d_in d_in"],
    row_weights: Float[Tensor, " rows"],
) -> Float[Tensor, "rows d_in"]:
    """Returns Δ of the generalized Sylvester equation Δ G0 + diag(α) Δ S = diag(α) W0 N: all targets share row weights.

    One eigendecomposition S T = G0 T Λ with Tᵀ G0 T = I, then Δ = [diag(α) W0 N T ⊘ (1 + α_i λ_j)] Tᵀ.
    """
    eigenvalues, vectors = torch.linalg.eigh(_whitened(slots, regularizer))
    basis = torch.linalg.solve_triangular(regularizer.factor.mT, vectors, upper=True)
    alpha = row_weights.double().unsqueeze(1)
    response = map_rows(base.double(), shift.double() @ basis)
    response.mul_(alpha).div_(1.0 + alpha * eigenvalues.clamp_min(0.0))
    return finite(map_rows(response, basis.mT))


def shared_map(
    regularizer: Regularizer, *, slots: Float[Tensor, "d_in d_in"], shift: Float[Tensor, "rows d_in"]
) -> Float[Tensor, "rows d_in"]:
    """Returns N (G0 + S)⁻¹, by which W0 is multiplied for the answer of `solve_shared_rows` where every α is 1.

    With V − W0 S for N it is that answer itself.

    (G0 + S)⁻¹ = L⁻ᵀ (I + L⁻¹ S L⁻ᵀ)⁻¹ L⁻¹, whose middle is well-conditioned where G0 + S is not.

    Raises:
        SingularSystemError: it is not finite.
    """
    middle = cholesky(add_ridge(_whitened(slots, regularizer), 1.0))

    def solve(columns: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(regularizer.factor, columns, upper=False)
        return torch.linalg.solve_triangular(regularizer.factor.mT, torch.cholesky_solve(half, middle), upper=True)

    return finite(map_columns(solve, shift.double().mT).mT)


def _whitened(slots: Float[Tensor, "d_in d_in"], regularizer: Regularizer) -> Float[Tensor, "d_in d_in"]:
    """Returns L⁻¹ S L⁻ᵀ."""
    whitened = finite(regularizer.whitened(regularizer.whitened(slots.double()).mT))
    return (whitened + whitened.mT) / 2.0


def solve_sylvester(
    right: Float[Tensor, "rows d_in"], matrix: Float[Tensor, "d_in d_in"], row_weights: Float[Tensor, " rows"]
) -> Float[Tensor, "rows d_in"]:
    """Returns Δ of the Sylvester equation diag(α) Δ + Δ A = `right`, A symmetric positive definite (ScaPre eq. 10).

    With A = Q Λ Qᵀ: Δ = [right Q ⊘ (α_i + λ_j)] Qᵀ.
    """
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return finite(right @ vectors / (row_weights.double().unsqueeze(1) + eigenvalues) @ vectors.mT)


@dataclass(frozen=True)
class ShiftedInverses:
    """(H + s I)⁻¹ of several shifts s."""

    terms: Float[Tensor, "terms d_in d_in"]
    coefficients: Float[Tensor, "shifts terms"] | None = None
    """Every inverse is a sum of the terms with coefficients of its own; `None` where each is a term."""

    def inverse(self, place: int) -> Float[Tensor, "d_in d_in"]:
        """Returns the inverse for one shift."""
        if self.coefficients is None:
            return self.terms[place]
        return torch.tensordot(self.coefficients[place], self.terms, dims=1)

    def times(self, columns: Float[Tensor, "d_in columns"]) -> Float[Tensor, "shifts d_in columns"]:
        """Returns every inverse times a thin matrix."""
        products = self.terms @ columns
        return products if self.coefficients is None else torch.tensordot(self.coefficients, products, dims=1)


def shifted_inverses(matrix: Float[Tensor, "d_in d_in"], shifts: Float[Tensor, " shifts"]) -> ShiftedInverses:
    """Returns (H + s I)⁻¹ for a positive semidefinite H and every positive shift s.

    Shifts that lie close together share one factorization: with G = H + s̄ I, (G + δ I)⁻¹ = Σ_q (−δ)^q G^−(q+1), whose
    terms fall by |δ| / s̄ or faster; the sum runs to double precision.

    Raises:
        SingularSystemError: a shift is not positive.
    """
    if not float(shifts.min()) > 0:
        raise SingularSystemError("a row's system is not positive definite, as that of weights that are 0; raise ridge")
    middle = float((shifts.min() + shifts.max()) / 2.0)
    ratio = float((shifts - middle).abs().max()) / middle
    count = 1 if ratio == 0.0 else math.ceil(math.log(torch.finfo(torch.float64).eps) / math.log(ratio)) + 1
    if count > min(len(shifts), LONGEST_SERIES):
        return ShiftedInverses(torch.stack([_inverse(add_ridge(matrix, float(shift))) for shift in shifts]))
    powers = [_inverse(add_ridge(matrix, middle))]
    while len(powers) < count:
        powers.append(symmetric_product(powers[-1], powers[0]))  # they commute
    exponents = torch.arange(count, dtype=shifts.dtype, device=shifts.device)
    return ShiftedInverses(torch.stack(powers), (middle - shifts).unsqueeze(1) ** exponents)


def orthonormal_basis(columns: Float[Tensor, "d_in columns"]) -> Float[Tensor, "d_in directions"]:
    """Returns an orthonormal basis of the span of `columns`, to working precision."""
    left, sigma, _ = torch.linalg.svd(columns, full_matrices=False)
    return left[:, _significant(sigma)]


def thin_factors(
    matrix: Float[Tensor, "d_in d_in"],
) -> tuple[Float[Tensor, "d_in rank"], Float[Tensor, "rank d_in"]]:
    """Returns an orthonormal basis of the columns of `matrix` and its coordinates, whose common side is its rank.

    A few of the columns span a thin matrix; all of them are factorized only if these do not.
    """
    few = orthonormal_basis(matrix[:, ::COLUMNS_PER_SAMPLE])
    inside = few.mT @ matrix
    if float((matrix - few @ inside).norm()) <= RANK_TOLERANCE * float(matrix.norm()):
        return few, inside
    basis = orthonormal_basis(matrix)
    return basis, basis.mT @ matrix


def _inverse(matrix: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "d_in d_in"]:
    return torch.cholesky_inverse(cholesky(matrix))


def cholesky(matrix: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "d_in d_in"]:
    """Returns the lower triangular factor.

    Raises:
        SingularSystemError: the matrix is not positive definite.
    """
    factor, failed_at = torch.linalg.cholesky_ex(matrix)
    if bool(failed_at):
        raise SingularSystemError("a system is not positive definite; raise ridge or lower erasure_strength")
    return factor


def _significant(sigma: Float[Tensor, " values"]) -> Bool[Tensor, " values"]:
    return sigma > RANK_TOLERANCE * sigma.max().clamp_min(torch.finfo(sigma.dtype).tiny) if len(sigma) else sigma > 0


def finite(delta: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
    """Returns `delta` itself.

    Raises:
        SingularSystemError: it is not finite.
    """
    if not math.isfinite(float(delta.sum())):  # one NaN or infinity spoils the sum, and no copy is made
        raise SingularSystemError("the solution is not finite; raise ridge or lower erasure_strength")
    return delta
