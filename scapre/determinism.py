"""Same bytes whatever the number of threads; and a clock that stays out of them."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_allowed: ContextVar[int | None] = ContextVar("allowed", default=None)


@contextmanager
def single_threaded() -> Generator[None]:
    """Runs the block with one CPU thread, since how BLAS splits a sum over threads changes its last bits."""
    threads = torch.get_num_threads()
    outermost = _allowed.set(allowed_threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _allowed.reset(outermost)


def allowed_threads() -> int:
    """Returns how many threads torch may use outside of any `single_threaded` block, for work in independent parts."""
    return _allowed.get() or torch.get_num_threads()


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
