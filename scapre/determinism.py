"""Same bytes whatever the number of threads; and a clock that stays out of them."""

import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

MOST_WORKERS = 16
"""Threads, unless a caller holds much in each."""
_Part = TypeVar("_Part")
_Made = TypeVar("_Made")

_one_at_a_time = threading.RLock()
_counting = threading.Lock()
_outside: list[int] = []
"""Threads torch had before the outermost open block; empty when none is open."""


@contextmanager
def exact_arithmetic() -> Generator[None]:
    """Runs the block without gradients, and with products as exact as their factors, whatever the caller allows.

    Autocast holds for the caller's thread and not for others, so that numbers would depend on how many there are; which
    attention kernels are allowed decides about last bits; and what names no device is meant to be in memory. What of
    this torch keeps for the whole process is so for other threads as well while the block runs.
    """
    cpu, cuda = (torch.autocast(device, enabled=False) for device in ("cpu", "cuda"))
    any_attention = sdpa_kernel([backend for backend in SDPBackend.__members__.values() if backend != SDPBackend.ERROR])
    with _full_precision(), torch.no_grad(), cpu, cuda, any_attention, torch.device("cpu"):
        yield


@contextmanager
def _full_precision() -> Generator[None]:
    """Has float32 products rounded to nothing less.

    Torch has two settings for it, one for all and since 2.9 one for each backend; it computes with the second, and
    will not tell the first where the two contradict each other, as when a caller has set only one backend's.
    """
    backends = [getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn)]
    before = [(held, held.fp32_precision) for held in backends if hasattr(held, "fp32_precision")]
    inherited = getattr(torch.backends, "fp32_precision", None)
    try:
        allowed = torch.get_float32_matmul_precision()
    except RuntimeError:
        allowed = None
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if allowed:
            torch.set_float32_matmul_precision(allowed)
        for held, precision in before:
            held.fp32_precision = "none" if precision == inherited else precision


@contextmanager
def single_threaded() -> Generator[None]:
    """Runs the block with one CPU thread, since how BLAS splits a sum over threads changes its last bits.

    BLAS has one number of threads for the whole process, so blocks of several Python threads wait for one another.
    """
    wanted = allowed_threads()  # before waiting: a thread that torch meets during another's block starts with one
    with _one_at_a_time:
        with _counting:
            _outside.append(wanted)
            torch.set_num_threads(1)
        try:
            yield
        finally:
            with _counting:
                _outside.pop()
                torch.set_num_threads(1 if _outside else wanted)


def allowed_threads() -> int:
    """Returns how many threads torch may use outside of any `single_threaded` block, for work in independent parts."""
    with _counting:
        return _outside[0] if _outside else torch.get_num_threads()


def side_by_side(
    work: Callable[[_Part], _Made], parts: Iterable[_Part], *, on_cpu: bool, most: int = MOST_WORKERS
) -> Generator[_Made]:
    """Yields what `work`, without gradients, makes of each part, in order; close it if you stop before its end.

    On a CPU several threads do, each part on one; how the parts are cut must not depend on the number of threads.
    Elsewhere the caller's own thread does, whose streams they are.
    """
    workers = min(allowed_threads(), most) if on_cpu else 1
    is_inference = torch.is_inference_mode_enabled()

    def work_as_here(part: _Part) -> _Made:  # modes are each thread's own
        with torch.inference_mode(is_inference), torch.no_grad():
            return work(part)

    with single_threaded():
        if workers == 1:
            yield from map(work_as_here, parts)
            return
        # BLAS asks a thread itself, and one that never met torch's setting has as many as there are cores
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work_as_here, parts)


def run_parts(work: Callable[[_Part], None], parts: Iterable[_Part], *, on_cpu: bool, most: int = MOST_WORKERS) -> None:
    """Has `work` done on every part, as `side_by_side` does."""
    for _ in side_by_side(work, parts, on_cpu=on_cpu, most=most):
        pass


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
