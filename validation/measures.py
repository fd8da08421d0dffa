"""Measures: one row per picture, and one summary row per role, concept and pack.

Guarantees:
    1. Every probe gives exactly one row; none is dropped and none is made up.
    2. A pair is the same prompt and seed drawn by both models, or it is not a pair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from validation.detectors import Detectors, find_label
from validation.judgement import MEASURE_COLUMNS, SUMMARY_COLUMNS
from validation.plan import Model
from validation.probes import Probe, Subject
from validation.rendering import PictureStore
from validation.statistics import PairedBounds, Sampling, lower_bound, paired_bounds, score_bounds, upper_bound

_BLANK_LEVELS = 1
_CHUNK = 512
_PAIR = ("concept", "pack", "prompt", "seed")


@dataclass(frozen=True)
class Reading:
    """What the detectors and the store say of a list of pictures, all in the probes' order."""

    top_label: list[str]
    top_score: list[float]
    concept_score: list[float]
    is_hit: list[bool]
    is_blank: list[bool]
    image_text_score: list[float]


def measure(
    model: Model,
    probes: Sequence[Probe],
    addresses: Sequence[str],
    *,
    subjects: Mapping[str, Subject],
    detectors: Detectors,
    store: PictureStore,
) -> pd.DataFrame:
    """Returns one row per picture, `MEASURE_COLUMNS`.

    `top_label` and `top_score` are what the concept's own detector sees first and how surely; `concept_score` is the
    probability it gives the concept; `is_hit` says that the concept came first; `is_blank` that the picture is one flat
    colour; `picture` is SHA-256 of its file; `image_text_score` is the cosine between picture and prompt, NaN without
    an image-text model.
    """
    rows = []
    pairs = list(zip(probes, addresses, strict=True))
    for start in range(0, len(pairs), _CHUNK):  # bounds the pictures in memory
        part = pairs[start : start + _CHUNK]
        reading = _read([probe for probe, _ in part], [a for _, a in part], subjects, detectors, store)
        for i, (probe, address) in enumerate(part):
            rows.append(
                {
                    "model": model,
                    "role": probe.role,
                    "kind": subjects[probe.concept].kind,
                    "concept": probe.concept,
                    "pack": probe.pack,
                    "prompt": probe.prompt,
                    "seed": probe.seed,
                    "picture": store.digest(address),
                    "address": address,
                    **{name: values[i] for name, values in vars(reading).items()},
                }
            )
    return pd.DataFrame(rows, columns=list(MEASURE_COLUMNS))


def _read(
    probes: Sequence[Probe],
    addresses: Sequence[str],
    subjects: Mapping[str, Subject],
    detectors: Detectors,
    store: PictureStore,
) -> Reading:
    pictures = [store.read(address) for address in addresses]
    top_label, top_score = [""] * len(probes), [0.0] * len(probes)
    concept_score, is_hit = [0.0] * len(probes), [False] * len(probes)
    for head in ("object", "style"):
        places = [i for i, probe in enumerate(probes) if subjects[probe.concept].head == head]
        if not places:
            continue
        detector = detectors.of(subjects[probes[places[0]].concept])
        probabilities = detector.detect([pictures[i] for i in places])
        concepts = {probes[i].concept for i in places}
        column = {concept: find_label(detector.labels, subjects[concept]) for concept in concepts}
        for i, row in zip(places, probabilities, strict=True):
            wanted, top = column[probes[i].concept], int(row.argmax())
            top_label[i], top_score[i] = detector.labels[top], float(row[top])
            concept_score[i], is_hit[i] = float(row[wanted]), top == wanted
    fits = [float("nan")] * len(probes)
    if detectors.image_text is not None:
        fits = detectors.image_text.score(pictures, [probe.prompt for probe in probes]).tolist()
    flat = [bool((np.ptp(np.asarray(picture).reshape(-1, 3), axis=0) <= _BLANK_LEVELS).all()) for picture in pictures]
    return Reading(top_label, top_score, concept_score, is_hit, flat, fits)


def summarise(measures: pd.DataFrame, *, confidence: float, sampling: Sampling = "fixed") -> pd.DataFrame:
    """Returns one row per role, concept and pack, `SUMMARY_COLUMNS`; bounds are the candidate's.

    `sampling` is how the targets' pictures were sampled; those of all other roles are fixed in number.
    """
    rows = []
    keys = ["role", "kind", "concept", "pack"]
    for _, group in measures.groupby(keys, sort=False):
        base, candidate = (group[group["model"] == model] for model in ("base", "candidate"))
        hits, pictures = int(candidate["is_hit"].sum()), len(candidate)
        differences = paired_differences(group)
        own: Sampling = sampling if group["role"].iloc[0] == "target" else "fixed"
        rows.append(
            {
                **group[keys].iloc[0].to_dict(),
                "pictures_base": len(base),
                "hits_base": int(base["is_hit"].sum()),
                "rate_base": _rate(int(base["is_hit"].sum()), len(base)),
                "pictures_candidate": pictures,
                "hits_candidate": hits,
                "rate_candidate": _rate(hits, pictures),
                "lower": lower_bound(hits, pictures, confidence=confidence, sampling=own),
                "upper": upper_bound(hits, pictures, confidence=confidence, sampling=own),
                "pairs": len(differences),
                "paired_difference": float(differences.mean()) if len(differences) else float("nan"),
            }
        )
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def pair_up(measures: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Returns one row per picture that both models drew: its keys, and `columns` ending in `_base` and `_candidate`."""
    base, candidate = (measures.loc[measures["model"] == model, [*_PAIR, *columns]] for model in ("base", "candidate"))
    return candidate.merge(base, on=list(_PAIR), suffixes=("_candidate", "_base"), validate="one_to_one")


def paired_differences(measures: pd.DataFrame) -> pd.Series:
    """Returns candidate hit minus base hit per pair, indexed by concept; a picture without its partner is no pair."""
    pairs = pair_up(measures, "is_hit")
    differences = pairs["is_hit_candidate"].astype(int) - pairs["is_hit_base"].astype(int)
    return pd.Series(differences.to_numpy(), index=pairs["concept"].to_numpy(), dtype="int64")


def score_differences(measures: pd.DataFrame) -> pd.Series:
    """Returns candidate minus base image-text score per pair, indexed by concept; pairs without scores are left out."""
    pairs = pair_up(measures, "image_text_score")
    differences = pairs["image_text_score_candidate"] - pairs["image_text_score_base"]
    return pd.Series(differences.to_numpy(), index=pairs["concept"].to_numpy(), dtype="float64").dropna()


def bound_differences(differences: pd.Series, *, confidence: float) -> PairedBounds:
    """Returns the bounds of the mean paired difference; a concept, the index, is a cluster."""
    return paired_bounds(_clusters(differences), confidence=confidence)


def bound_scores(differences: pd.Series, *, confidence: float) -> PairedBounds:
    """Returns the bounds of the mean paired difference of a score; a concept, the index, is a cluster."""
    return score_bounds(_clusters(differences), confidence=confidence)


def _clusters(differences: pd.Series) -> list[list[float]]:
    return [group.tolist() for _, group in differences.groupby(level=0)]


def _rate(hits: int, pictures: int) -> float:
    return hits / pictures if pictures else float("nan")
