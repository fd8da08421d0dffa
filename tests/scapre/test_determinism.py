"""One thread inside a block, the former number outside, whoever else has a block of their own."""

import threading
import time
from collections.abc import Generator

import pytest
import torch

from scapre.determinism import allowed_threads, side_by_side, single_threaded


@pytest.fixture(autouse=True)
def three_threads() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_block_has_one_thread_and_gives_the_others_back_nested_or_not():
    with single_threaded():
        with single_threaded():
            assert (torch.get_num_threads(), allowed_threads()) == (1, 3)
        assert (torch.get_num_threads(), allowed_threads()) == (1, 3)
    assert torch.get_num_threads() == 3


def test_parts_are_made_in_order_each_by_one_thread_without_gradients():
    meet = threading.Barrier(3, timeout=30)

    def work(part: int) -> tuple[int, int, bool]:
        meet.wait()  # three at a time, or none gets on
        return part, torch.get_num_threads(), torch.is_grad_enabled()

    assert list(side_by_side(work, range(9), on_cpu=True)) == [(part, 1, False) for part in range(9)]
    assert torch.get_num_threads() == 3


def test_a_product_is_the_same_in_a_thread_that_asked_torch_for_nothing_before():
    source = torch.Generator().manual_seed(0)
    rows, matrix = (torch.randn(shape, generator=source, dtype=torch.float64) for shape in ((20487, 33), (33, 33)))
    blocks = rows.split(4096)
    with single_threaded():
        here = [block @ matrix for block in blocks]
    made = list(side_by_side(lambda block: block @ matrix, blocks, on_cpu=True))
    assert all(torch.equal(one, other) for one, other in zip(here, made, strict=True))


@pytest.mark.parametrize("is_inference", [True, False])
def test_parts_are_made_in_the_mode_of_whoever_asks(is_inference: bool):
    with torch.inference_mode(is_inference):
        made = list(side_by_side(lambda _: torch.zeros(1), range(2), on_cpu=True))
    assert [tensor.is_inference() for tensor in made] == [is_inference] * 2


@pytest.mark.parametrize(("on_cpu", "most"), [(False, 9), (True, 1)])
def test_an_accelerator_is_given_one_part_at_a_time(on_cpu: bool, most: int):
    at_work = threading.Semaphore(1)

    def work(part: int) -> int:
        assert at_work.acquire(blocking=False)
        time.sleep(0.01)
        at_work.release()
        return part

    assert list(side_by_side(work, range(5), on_cpu=on_cpu, most=most)) == list(range(5))


def test_a_part_that_fails_is_told_and_threads_are_given_back():
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda part: 1 // part, [1, 0, 1], on_cpu=True))
    assert torch.get_num_threads() == 3


def test_a_block_that_fails_gives_them_back():
    with pytest.raises(ArithmeticError), single_threaded():
        raise ArithmeticError
    assert torch.get_num_threads() == 3


def test_blocks_of_two_threads_do_not_overlap_and_both_give_them_back():
    inside, order, left = threading.Event(), [], []

    def other() -> None:
        inside.wait()
        order.append("asks")
        with single_threaded():
            order.append("second")
        left.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    thread.start()
    with single_threaded():
        inside.set()
        thread.join(timeout=0.3)
        order.append("first")
    thread.join()
    assert order == ["asks", "first", "second"]
    assert [torch.get_num_threads(), *left] == [3, 3]
