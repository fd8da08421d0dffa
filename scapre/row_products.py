"""Products of matrices with many rows: blocks side by side on the threads of a CPU, the same bytes on any number."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from scapre.determinism import side_by_side

ROWS_AT_ONCE = 4096
"""Enough for one fast product, few enough that the blocks of a model keep several threads busy."""

MOST_SUMS = 4
"""Threads that each hold a d_in × d_in sum of every pair."""


def row_blocks(rows: int, at_once: int = ROWS_AT_ONCE) -> list[slice]:
    """Returns blocks that cover `rows` rows, whatever the number of threads."""
    return [slice(first, first + at_once) for first in range(0, rows, at_once)]


def map_rows(rows: Float[Tensor, "rows d_in"], matrix: Float[Tensor, "d_in d_out"]) -> Float[Tensor, "rows d_out"]:
    """Returns `rows` @ `matrix`."""
    product = rows.new_empty(len(rows), matrix.shape[1])

    def fill(block: slice) -> None:
        torch.mm(rows[block], matrix, out=product[block])

    for _ in side_by_side(fill, row_blocks(len(rows)), on_cpu=rows.is_cpu):
        pass
    return product


def cross_moments(*pairs: tuple[Float[Tensor, "rows a"], Float[Tensor, "rows b"]]) -> Sequence[Float[Tensor, "a b"]]:
    """Returns Σ_i l_i r_iᵀ over the rows of each pair (l, r) of matrices, all pairs of the same number of rows."""
    first = pairs[0][0]
    sums = [first.new_zeros(left.shape[1], right.shape[1]) for left, right in pairs]

    def multiply(block: slice) -> list[Tensor]:
        return [left[block].mT @ right[block] for left, right in pairs]

    for parts in side_by_side(multiply, row_blocks(len(first)), on_cpu=first.is_cpu, most=MOST_SUMS):
        for total, part in zip(sums, parts, strict=True):
            total += part
    return sums
