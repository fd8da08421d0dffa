"""The released algorithm as one would write it down: each row by itself, one Cholesky factorization per row."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scapre import spectral
from scapre.methods import Problem
from scapre.methods.base import Dials, mean_features
from scapre.moments import Statistics


class PlainReleased:
    """ScaPre's released code, seeded, for the rows of one problem (see `scapre.methods.released`).

    What rows share, and the noise, is made once; of the engine are the mean slots and the conflict gate only.
    """

    def __init__(self, problem: Problem, dials: Dials) -> None:
        self._problem, self._dials = problem, dials
        text, strength = problem.statistics, float(dials["erasure_strength"])
        self._copies = _noisy_copies(text, dials)
        columns = mean_features(text)
        shared = spectral.conflict_gate(columns, normalized=False) + columns @ columns.mT
        wanted = torch.zeros_like(shared)
        for target in text.targets:
            shared = shared + target.features.mT @ target.features
            wanted = wanted + target.anchors.mT @ target.features
        left, sigma, _ = torch.linalg.svd(columns, full_matrices=False)
        span = left[:, sigma > 1e-13 * sigma[0]]
        self._shared, self._wanted, self._projector = strength * shared, strength * wanted, strength * span @ span.mT
        self._identity = torch.eye(problem.base.shape[1], dtype=torch.float64)

    def entropy(self, row: int) -> float:
        """Returns the entropy of the row's energy in units of its maximum, whose mean over a projection is its μ."""
        energy = self._problem.base[row].square()
        share = energy / energy.sum()
        return float(torch.special.entr(share).sum()) / math.log(len(energy))

    def information(self, row: int) -> float:
        """Returns MI_i in nats, the largest over targets."""
        return max(_mutual_information(copies @ self._problem.base[row]) for copies in self._copies)

    def masks_and_weights(self, information: Sequence[float]) -> tuple[list[float], list[float]]:
        """Returns m_i and α_i of a projection's rows."""
        mean, largest = sum(information) / len(information), max(information)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in information) / len(information))
        power, temperature = float(self._dials["mask_power"]), float(self._dials["mask_temperature"])
        scores = [(value - mean) / deviation if deviation > 1e-12 else 0.0 for value in information]
        masks = [(1.0 / (1.0 + math.exp(-score / temperature))) ** power for score in scores]
        return masks, [value / largest if largest else 0.0 for value in information]

    def change(self, row: int, *, entropy: float, mask: float, weight: float) -> Tensor:
        """Returns w_i − w0_i, `[d_in]`, pulled back; `entropy` is the mean over the row's projection."""
        base, held = self._problem.base[row], float(self._dials["ridge"]) + entropy
        system = held * self._identity + self._shared + weight * self._projector
        right = held * base + mask * (base @ self._wanted)
        answer = torch.cholesky_solve(right.unsqueeze(1), torch.linalg.cholesky(system)).squeeze(1)
        return (1.0 - float(self._dials["pull_back"])) * (answer - base)


def _noisy_copies(text: Statistics, dials: Dials) -> list[Tensor]:
    """Returns n copies of each target's mean slot, and as many of its anchor's, `[2, n, d_in]`."""
    source, copies = torch.Generator().manual_seed(int(dials["seed"])), []
    for target in text.targets:
        means = torch.stack([target.weights @ target.features, target.weights @ target.anchors])
        size = (2, int(dials["samples"]), means.shape[1])
        noise = torch.randn(size, generator=source, dtype=torch.float64)
        copies.append(means.unsqueeze(1) + float(dials["noise"]) * noise)
    return copies


def _mutual_information(answers: Tensor) -> float:
    """Returns the nats between "it is the target" and "the row answers more than the median", of answers `[2, n]`."""
    copies, ordered = answers.shape[1], answers.flatten().sort().values
    middle = (ordered[copies - 1] + ordered[copies]) / 2
    fired = (answers > middle).double().mean(dim=1).tolist()
    rate = sum(fired) / 2
    cells = [(share / 2, rate / 2) for share in fired] + [((1 - share) / 2, (1 - rate) / 2) for share in fired]
    return sum(joint * math.log(joint / independent) for joint, independent in cells if joint)
