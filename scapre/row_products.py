"""Products of matrices with many rows: blocks side by side on the threads of a CPU, the same bytes on any number."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from scapre.determinism import run_parts, side_by_side

ROWS_AT_ONCE = 4096
"""Enough for one fast product, few enough that the blocks of a model keep several threads busy."""

COLUMNS_AT_ONCE = 192
"""Right-hand sides of a triangular system solved at once, likewise: CLIP-L's 768 are four blocks."""

MOST_SUMS = 4
"""Threads that each hold a d_in × d_in sum of every pair."""

COLUMN_BLOCKS = 4
"""Blocks of columns of a product of which about half is known: three eighths of the work is saved, and speed kept."""

_Part = TypeVar("_Part")


def row_blocks(rows: int, at_once: int = ROWS_AT_ONCE) -> list[slice]:
    """Returns blocks that cover `rows` rows, whatever the number of threads."""
    return [slice(first, first + at_once) for first in range(0, rows, at_once)]


def map_rows(rows: Float[Tensor, "rows d_in"], matrix: Float[Tensor, "d_in d_out"]) -> Float[Tensor, "rows d_out"]:
    """Returns `rows` @ `matrix`."""
    product = rows.new_empty(len(rows), matrix.shape[1])

    def fill(block: slice) -> None:
        torch.mm(rows[block], matrix, out=product[block])

    run_parts(fill, row_blocks(len(rows)), on_cpu=rows.is_cpu)
    return product


def map_columns(
    work: Callable[[Tensor], Tensor], matrix: Float[Tensor, "d_in columns"]
) -> Float[Tensor, "d_in columns"]:
    """Returns what `work`, which treats every column by itself, makes of `matrix`."""
    made = torch.empty_like(matrix)

    def fill(block: slice) -> None:
        made[:, block] = work(matrix[:, block])

    run_parts(fill, row_blocks(matrix.shape[1], COLUMNS_AT_ONCE), on_cpu=matrix.is_cpu)
    return made


def symmetric_product(
    left: Float[Tensor, "rows d_in"], right: Float[Tensor, "rows d_in"]
) -> Float[Tensor, "d_in d_in"]:
    """Returns Σ_i l_i r_iᵀ where that is known to be symmetric, as for r = ω l; three eighths are copied."""
    product = left.new_empty(left.shape[1], left.shape[1])
    for own, rest in _column_blocks(left.shape[1]):
        torch.mm(left[:, own].mT, right[:, own.start :], out=product[own, own.start :])
        product[rest, own] = product[own, rest].mT
    return product


def triangular_product(
    rows: Float[Tensor, "rows d_in"], upper: Float[Tensor, "d_in d_in"]
) -> Float[Tensor, "rows d_in"]:
    """Returns `rows` @ `upper`, of which nothing but 0 stands below the diagonal."""
    product = torch.empty_like(rows)
    for own, rest in _column_blocks(rows.shape[1]):
        torch.mm(rows[:, : rest.start], upper[: rest.start, own], out=product[:, own])
    return product


def _column_blocks(width: int) -> list[tuple[slice, slice]]:
    """Returns each block of columns, and those to its right."""
    step = max(1, -(-width // COLUMN_BLOCKS))
    ends = [min(first + step, width) for first in range(0, width, step)]
    return [(slice(first, end), slice(end, None)) for first, end in zip([0, *ends], ends, strict=False)]


def cross_moments(*pairs: tuple[Float[Tensor, "rows a"], Float[Tensor, "rows b"]]) -> Sequence[Float[Tensor, "a b"]]:
    """Returns Σ_i l_i r_iᵀ over the rows of each pair (l, r) of matrices, all pairs of the same number of rows."""
    first = pairs[0][0]

    def multiply(block: slice) -> list[Tensor]:
        return [
            symmetric_product(left[block], right[block]) if left is right else left[block].mT @ right[block]
            for left, right in pairs
        ]

    sums = [first.new_zeros(left.shape[1], right.shape[1]) for left, right in pairs]
    return add_parts(multiply, row_blocks(len(first)), sums)


def add_parts(
    work: Callable[[_Part], Sequence[Tensor]], parts: Iterable[_Part], sums: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Returns `sums`, to each of which is added, in order, what `work` makes of every part."""
    for made in side_by_side(work, parts, on_cpu=sums[0].is_cpu, most=MOST_SUMS):
        for total, part in zip(sums, made, strict=True):
            total += part
    return sums
