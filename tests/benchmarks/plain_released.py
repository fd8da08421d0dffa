"""The released algorithm as one would write it down: one system and one Cholesky factorization per row."""

from collections.abc import Callable

import torch
from torch import Tensor

from scapre import spectral
from scapre.methods import Problem
from scapre.methods.base import Dials, mean_features, slot_moments
from scapre.methods.released import RowSystems, entropy_factor


def plain_row_solver(problem: Problem, systems: RowSystems, dials: Dials) -> Callable[[int], Tensor]:
    """Returns a function from a row's number to its w_i = M_i⁻¹ b_i (see `scapre.methods.released`).

    What rows share is built once, here; masks and weights are given, for only the algebra is compared.
    """
    strength, base = float(dials["erasure_strength"]), problem.base
    gram, shift = slot_moments(problem.statistics, averaged=False)
    columns = mean_features(problem.statistics)
    shared = strength * (spectral.conflict_gate(columns, normalized=False) + columns @ columns.mT + gram)
    left, sigma, _ = torch.linalg.svd(columns, full_matrices=False)
    projector = left[:, sigma > 1e-13 * sigma[0]] @ left[:, sigma > 1e-13 * sigma[0]].mT
    wanted, identity = strength * (shift + gram), torch.eye(base.shape[1], dtype=base.dtype)
    held = torch.empty(len(base), dtype=base.dtype)
    for rows in problem.parts.values():
        held[rows] = float(dials["ridge"]) + entropy_factor(base[rows])

    def solve_row(row: int) -> Tensor:
        system = held[row] * identity + shared + systems.row_weights[row] * projector
        right = held[row] * base[row] + systems.mask[row] * (base[row] @ wanted)
        return torch.cholesky_solve(right.unsqueeze(1), torch.linalg.cholesky(system)).squeeze(1)

    return solve_row
