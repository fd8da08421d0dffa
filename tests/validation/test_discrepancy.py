"""CMMD: zero for equal pictures, right on average, and never without what other seeds do."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from validation.discrepancy import BANDWIDTH, SCALE, cmmd, measure_discrepancies
from validation.rendering import PictureStore
from validation.report.effects import moves

WIDTH = 6
CONCEPTS = np.array(["cat", "dog", "owl"]).repeat(8)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def drawn(rng: np.random.Generator, shift: float = 0.0) -> np.ndarray:
    rows = rng.normal(size=(len(CONCEPTS), WIDTH)) + np.linspace(0, 2, WIDTH)
    return unit(rows + shift)


def naive(before: np.ndarray, after: np.ndarray, concepts: np.ndarray) -> float:
    """The same in loops, from the definition."""

    def kernel(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.exp(-((one - other) ** 2).sum() / (2 * BANDWIDTH**2)))

    blocks = []
    for one in np.unique(concepts):
        for other in np.unique(concepts):
            terms = [
                kernel(before[i], before[j])
                + kernel(after[i], after[j])
                - kernel(before[i], after[j])
                - kernel(before[j], after[i])
                for i in np.flatnonzero(concepts == one)
                for j in np.flatnonzero(concepts == other)
                if i != j
            ]
            blocks.append(np.mean(terms))
    return SCALE * float(np.mean(blocks))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_it_is_what_the_definition_says(seed: int, each: int):
    rng = np.random.default_rng(seed)
    concepts = np.array(["a", "b"]).repeat(each)
    before, after = (unit(rng.normal(size=(2 * each, WIDTH))) for _ in range(2))
    assert cmmd(before, after, concepts) == pytest.approx(naive(before, after, concepts), abs=1e-8)


def test_equal_pictures_give_zero_and_order_does_not_matter():
    before = drawn(np.random.default_rng(1))
    assert cmmd(before, before, CONCEPTS) == 0
    after = drawn(np.random.default_rng(2), shift=0.5)
    order = np.random.default_rng(3).permutation(len(CONCEPTS))
    assert cmmd(before[order], after[order], CONCEPTS[order]) == pytest.approx(cmmd(before, after, CONCEPTS))


def test_without_a_difference_it_is_zero_on_average_and_with_one_it_is_not():
    rng = np.random.default_rng(4)
    same = [cmmd(drawn(rng), drawn(rng), CONCEPTS) for _ in range(300)]
    error = np.std(same) / len(same) ** 0.5
    assert abs(np.mean(same)) < 3 * error
    assert min(same) < 0  # unbiased, so not squeezed to one side
    biased = [cmmd(a, b, CONCEPTS) for a, b in ((drawn(rng), drawn(rng, shift=1.0)) for _ in range(50))]
    assert np.mean(biased) > 10 * error  # the control


class Palette:
    """Embeds a picture as the direction of its mean colour."""

    def embed(self, pictures: list[Image.Image]) -> np.ndarray:
        return unit(np.stack([np.asarray(p, dtype=np.float64).reshape(-1, 3).mean(axis=0) + 1 for p in pictures]))


@pytest.fixture
def gallery(tmp_path: Path) -> Any:
    """Returns measures of two concepts in red and green, kept as they are or with the colours changed."""
    store = PictureStore(tmp_path)

    def build(*, each: int = 6, change: float = 0.0, role: str = "retained") -> tuple[pd.DataFrame, PictureStore]:
        rows = []
        for concept, colour in (("rose", (0.8, 0.1, 0.1)), ("fern", (0.1, 0.8, 0.1))):
            for seed in range(each):
                for model, blue in (("base", 0.0), ("candidate", change)):
                    noise = np.random.default_rng([seed, len(concept)]).normal(0, 0.05, 3)
                    pixels = np.broadcast_to(
                        np.clip(np.array(colour) + noise + np.array((0, 0, blue)), 0, 1), (4, 4, 3)
                    )
                    address = f"{concept}{seed}{model}{change}".encode().hex()
                    store.write(address, pixels.astype(np.float32))
                    key = {"model": model, "role": role, "concept": concept, "pack": "direct", "prompt": concept}
                    rows.append(key | {"seed": seed, "address": address})
        return pd.DataFrame(rows), store

    return build


def measured(gallery: Any, **asked: Any) -> Any:
    measures, store = gallery(**asked)
    return measure_discrepancies(measures, image_text=Palette(), store=store, confidence=0.95)  # ty: ignore


def test_a_change_of_all_pictures_stands_out_from_other_seeds(gallery: Any):
    (kept,) = measured(gallery)
    assert (kept.role, kept.concepts, kept.pairs, kept.cmmd) == ("retained", 2, 12, 0)
    assert kept.other_seeds > 0
    (moved,) = measured(gallery, change=0.6)
    assert moved.cmmd > 10 * moved.other_seeds
    assert moved.other_seeds == kept.other_seeds  # it is about the base alone
    assert measured(gallery, change=0.6) == (moved,)


def test_too_few_pictures_give_no_reference_and_single_ones_no_figure(gallery: Any):
    (few,) = measured(gallery, each=3)
    assert few.other_seeds is None
    assert measured(gallery, each=1) == ()


def test_the_report_reads_the_figure_against_other_seeds(gallery: Any):
    from types import SimpleNamespace

    def reading(found: Any) -> str:
        return moves(SimpleNamespace(discrepancies=found))[0].reading  # ty: ignore[invalid-argument-type]

    assert reading(measured(gallery)) == "less than other seeds do"
    assert reading(measured(gallery, change=0.6)) == "more than other seeds do"
    assert reading(measured(gallery, each=3)).startswith("too few pictures")
