"""Products in blocks are the products, to the same bytes on any number of threads."""

from collections.abc import Generator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scapre.row_products import (
    ROWS_AT_ONCE,
    cross_moments,
    map_rows,
    row_blocks,
    symmetric_product,
    triangular_product,
)


@pytest.fixture
def threads() -> Generator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows_of(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(rows=st.integers(0, 50), at_once=st.integers(1, 60))
def test_blocks_cover_every_row_once(rows: int, at_once: int) -> None:
    assert [row for block in row_blocks(rows, at_once) for row in range(rows)[block]] == list(range(rows))


@pytest.mark.parametrize("rows", [0, 1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 3])
def test_products_are_those_of_the_whole(rows: int) -> None:
    left, right, matrix = rows_of(rows, 5), rows_of(rows, 4, seed=1), rows_of(5, 3, seed=2)
    torch.testing.assert_close(map_rows(left, matrix), left @ matrix)
    own, crossed = cross_moments((left, left), (left, right))
    torch.testing.assert_close(own, left.mT @ left)
    torch.testing.assert_close(crossed, left.mT @ right)


@given(rows=st.integers(0, 9), width=st.integers(1, 20), seed=st.integers(0, 100))
def test_half_a_product_is_the_whole_where_the_other_half_is_known(rows: int, width: int, seed: int) -> None:
    left, upper = rows_of(rows, width, seed), rows_of(width, width, seed + 1).triu()
    weighted = rows_of(rows, 1, seed + 2) * left
    torch.testing.assert_close(symmetric_product(left, weighted), left.mT @ weighted)
    torch.testing.assert_close(triangular_product(left, upper), left @ upper)


def test_half_a_product_is_another_where_the_other_half_is_not() -> None:
    left, right = rows_of(9, 8), rows_of(9, 8, seed=1)
    assert not torch.allclose(symmetric_product(left, right), left.mT @ right)
    assert not torch.allclose(triangular_product(left, rows_of(8, 8)), left @ rows_of(8, 8))


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    rows, matrix = rows_of(5 * ROWS_AT_ONCE + 7, 33), rows_of(33, 33, seed=1)
    made = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        made.append((map_rows(rows, matrix), *cross_moments((rows, rows))))
    assert all(torch.equal(first, other) for one in made[1:] for first, other in zip(made[0], one, strict=True))


@pytest.mark.parametrize("is_inference", [True, False])
def test_products_are_made_in_inference_mode_as_well(is_inference: bool) -> None:
    with torch.inference_mode(is_inference):
        rows, matrix = rows_of(3, 2), rows_of(2, 2)
        torch.testing.assert_close(map_rows(rows, matrix), rows @ matrix)
        torch.testing.assert_close(cross_moments((rows, rows))[0], rows.mT @ rows)


def test_what_is_not_finite_stays_so() -> None:
    rows = rows_of(3, 2)
    rows[1, 0] = float("nan")
    assert map_rows(rows, rows_of(2, 2)).isnan().any(dim=1).tolist() == [False, True, False]
