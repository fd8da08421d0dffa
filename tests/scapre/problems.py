"""Small problems made of random numbers, and a way to solve them with any method."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from scapre.determinism import Stopwatch
from scapre.methods import Problem, Solution, find_method
from scapre.moments import Statistics
from tests.benchmarks.synthetic import TextShape, synthetic_statistics, synthetic_text

WIDTH = 24
ROWS = {"first": slice(0, 7), "second": slice(7, 18), "wide": slice(18, 50)}


def problem_of(seed: int = 0, *, targets: int = 3, found: int = 6, width: int = WIDTH) -> Problem:
    shape = TextShape(targets, width=width, sentences=2, padding=2, named=2, found=found)
    base = torch.randn(50, width, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return Problem(base / math.sqrt(width), ROWS, synthetic_statistics(synthetic_text(shape, seed=seed)))


def solve(problem: Problem, method: str, **dials: float | str) -> Solution:
    chosen = find_method(method)
    return chosen.solve(problem, chosen.resolve(dials), Stopwatch())


def each_slot(statistics: Statistics) -> Iterator[tuple[Tensor, Tensor]]:
    for target in statistics.targets:
        yield from zip(target.features, target.anchors, strict=True)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())
