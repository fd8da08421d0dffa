"""Same bytes whatever the number of threads; and a clock that stays out of them."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch


@contextmanager
def single_threaded() -> Generator[None]:
    """Runs the block with one CPU thread, since how BLAS splits a sum over threads changes its last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Stopwatch:
    """Seconds spent in each named phase, by the clock `now`."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._now = now

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Adds the duration of the block to phase `name`."""
        started = self._now()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - started
