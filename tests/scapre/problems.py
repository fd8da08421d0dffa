"""Small problems made of random numbers, and a way to solve them with any method."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from scapre.concepts import Concept
from scapre.determinism import Stopwatch
from scapre.methods import Problem, Solution, find_method
from scapre.moments import Placed, Statistics, TargetSlots
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


def random_targets(
    seed: int, *, count: int, slots: int, width: int, rows: int
) -> tuple[Tensor, list[TargetSlots], Tensor]:
    """Returns a regularizer, targets without any structure and base weights."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    retained = normal(3 * width, width)
    gram = retained.mT @ retained / (3 * width) + 0.1 * torch.eye(width, dtype=torch.float64)
    targets = []
    for k in range(count):
        weights = torch.rand(slots, generator=source, dtype=torch.float64) + 0.1
        features, anchors, neutrals = (normal(slots, width) for _ in range(3))
        targets.append(
            TargetSlots(
                Placed(Concept(f"concept {k}"), "", ()), features, anchors, weights / weights.sum(), (neutrals,)
            )
        )
    return gram, targets, normal(rows, width)


def objective(weight: Tensor, base: Tensor, gram: Tensor, targets: Sequence[TargetSlots], alpha: Tensor) -> Tensor:
    """Returns the objective of each row, written out."""
    change = weight - base
    value = torch.einsum("ij,jk,ik->i", change, gram, change)
    for k, target in enumerate(targets):
        gap = weight @ target.features.mT - base @ target.anchors.mT
        value = value + alpha[:, k] * (target.weights * gap.square()).sum(dim=1)
    return value


def naive_rows(base: Tensor, gram: Tensor, targets: Sequence[TargetSlots], alpha: Tensor) -> Tensor:
    """Returns the minimizer, one row and one slot at a time."""
    rows = []
    for i in range(len(base)):
        system, right = gram.clone(), gram @ base[i]
        for k, target in enumerate(targets):
            for feature, anchor, omega in zip(target.features, target.anchors, target.weights, strict=True):
                system += alpha[i, k] * omega * torch.outer(feature, feature)
                right += alpha[i, k] * omega * (base[i] @ anchor) * feature
        rows.append(torch.linalg.solve(system, right))
    return torch.stack(rows)
