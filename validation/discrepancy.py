"""Discrepancy: how far the candidate's pictures as a whole have moved from the base's (CMMD).

Guarantees:
    1. Pairs are compared, and the estimator is unbiased for them: equal pictures give exactly 0.
    2. The figure never stands alone: beside it is what the base's own pictures reach with other seeds.
    3. The random splits behind that are seeded; the same pictures give the same figures.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from validation.detectors import ImageTextDetector
from validation.judgement import Discrepancy
from validation.measures import pair_up
from validation.rendering import PictureStore

BANDWIDTH = 10.0
SCALE = 1000.0
"""Both as published (Jayasumana et al. 2024), so that figures read like theirs with the same image-text model."""
_SPLITS = 200
_SPLIT_SEED = 0
_FEWEST_PAIRS = 2
"""Of a concept: a distance within it takes two."""
_FEWEST_TO_SPLIT = 4
_CHUNK = 512

Embeddings = NDArray[np.float64]


def cmmd(before: Embeddings, after: Embeddings, concepts: Sequence[str] | NDArray[np.str_]) -> float:
    """Returns the squared maximum mean discrepancy of two sets of pictures times 1000, from unit-length embeddings.

    The unbiased estimator with a Gaussian kernel (Gretton et al. 2012, eq. 4; Jayasumana et al. 2024), in which a
    picture meets neither itself nor its partner, so that drawing both sets from the same seeds does not bias it. Every
    concept counts once. It may be below 0: an unbiased estimate of a small number sometimes is.

    Not the Fréchet distance (FID): that takes features for normal and estimates a covariance of 2048² numbers from the
    pictures; with hundreds of them its bias is larger than the effect. This has no bias at any number of pictures.

    Args:
        before: `[pairs, width]`.
        after: The partners, row by row.
        concepts: The concept of each row; every concept must come at least twice.
    """
    return SCALE * float(_block_means(before, after, np.asarray(concepts)).mean())


def measure_discrepancies(
    measures: pd.DataFrame, *, image_text: ImageTextDetector, store: PictureStore, confidence: float
) -> tuple[Discrepancy, ...]:
    """Returns the discrepancy of each role's pictures; targets come last, as the size of a change that was wanted."""
    found = []
    for role in ("retained", "style", "hidden", "target"):
        pairs = pair_up(measures[measures["role"] == role], "address")
        pairs = pairs[pairs.groupby("concept")["seed"].transform("size") >= _FEWEST_PAIRS].reset_index(drop=True)
        if not len(pairs):
            continue
        addresses = list(dict.fromkeys([*pairs["address_base"], *pairs["address_candidate"]]))
        place = {address: row for row, address in enumerate(addresses)}
        seen = _embed(addresses, image_text, store)
        before, after = (seen[[place[a] for a in pairs[f"address_{model}"]]] for model in ("base", "candidate"))
        concepts = pairs["concept"].to_numpy(dtype=str)
        found.append(
            Discrepancy(
                role=role,
                concepts=len(set(concepts)),
                pairs=len(pairs),
                cmmd=cmmd(before, after, concepts),
                standard_error=_jackknife(_block_means(before, after, concepts)),
                other_seeds=_between_seeds(before, concepts, confidence=confidence),
            )
        )
    return tuple(found)


def _embed(addresses: Sequence[str], image_text: ImageTextDetector, store: PictureStore) -> Embeddings:
    parts = [addresses[start : start + _CHUNK] for start in range(0, len(addresses), _CHUNK)]  # bounds memory
    return np.concatenate([image_text.embed([store.read(address) for address in part]) for part in parts])


def _block_means(before: Embeddings, after: Embeddings, concepts: NDArray[np.str_]) -> NDArray[np.float64]:
    """Returns the mean of Gretton's `h` between every two concepts' pairs, `[concepts, concepts]`."""
    across = _kernel(before, after)
    h = _kernel(before, before) + _kernel(after, after) - across - across.T
    np.fill_diagonal(h, 0.0)
    is_of = (concepts[:, None] == np.unique(concepts)).astype(np.float64)
    sizes = is_of.sum(axis=0)
    return (is_of.T @ h @ is_of) / (np.outer(sizes, sizes) - np.diag(sizes))


def _kernel(one: Embeddings, other: Embeddings) -> NDArray[np.float64]:
    squared = 2 - 2 * np.clip(one @ other.T, -1, 1)  # both of unit length
    return np.exp(-squared / (2 * BANDWIDTH**2))


def _jackknife(blocks: NDArray[np.float64]) -> float | None:
    """Returns the standard error over concepts, each left out once."""
    count = len(blocks)
    if count < 2:
        return None
    without = [np.delete(np.delete(blocks, i, axis=0), i, axis=1).mean() for i in range(count)]
    return SCALE * float(np.sqrt((count - 1) * np.var(without)))


def _between_seeds(before: Embeddings, concepts: NDArray[np.str_], *, confidence: float) -> float | None:
    """Returns what the base reaches against itself with other seeds, in all but `1 - confidence` of random splits.

    Each split deals every concept's pictures into two halves. Halves are half as large as what they are compared with,
    so this errs to the high side.
    """
    groups = [np.flatnonzero(concepts == name) for name in np.unique(concepts)]
    groups = [group for group in groups if len(group) >= _FEWEST_TO_SPLIT]
    if not groups:
        return None
    rng = np.random.default_rng(_SPLIT_SEED)
    values = []
    for _ in range(_SPLITS):
        dealt = [(rng.permutation(group), len(group) // 2) for group in groups]
        one = np.concatenate([group[:half] for group, half in dealt])
        other = np.concatenate([group[half : 2 * half] for group, half in dealt])
        values.append(cmmd(before[one], before[other], concepts[one]))
    return float(np.quantile(values, confidence))
