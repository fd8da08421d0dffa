"""One thread inside a block, the former number outside, whoever else has a block of their own."""

import threading
from collections.abc import Generator

import pytest
import torch

from scapre.determinism import allowed_threads, single_threaded


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
