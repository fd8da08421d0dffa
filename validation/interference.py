"""Interference: what forgetting the targets did to everything else, concept by concept, and what targets became.

Guarantees:
    1. Every figure is counted from the table of measures, so whoever has the table can count it again.
    2. A target is named for a loss only where both show the same thing; that is a likeness, not a proof of cause.
"""

from collections import Counter
from dataclasses import dataclass

import pandas as pd

from validation.measures import pair_up

_NAMED_FROM = 0.5
"""Likeness from which a target is named: below, most of the lost pictures went some other way."""


@dataclass(frozen=True)
class Interference:
    """A concept that lost pictures, what is seen in them now, and the target that went the same way."""

    concept: str
    role: str
    pairs: int
    lost: int
    """Pairs in which the base shows the concept and the candidate does not."""
    change: float
    """Mean paired difference."""
    instead: tuple[tuple[str, int], ...]
    """What the detector sees in the lost pictures, most frequent first."""
    target: str | None
    """The target whose pictures now look most like the lost ones; None where it accounts for less than half of them."""
    likeness: float
    """Share of the lost pictures that the target accounts for."""


def find_interference(measures: pd.DataFrame) -> list[Interference]:
    """Returns the concepts that lost pictures without being targets, the most damaged first."""
    pairs = pair_up(measures[measures["role"] != "target"], "role", "is_hit", "top_label")
    became = target_replacements(measures)
    labels = _target_labels(measures)
    found = []
    for concept, own in pairs.groupby("concept", sort=False):
        is_lost = own["is_hit_base"].astype(bool) & ~own["is_hit_candidate"].astype(bool)
        if not is_lost.any():
            continue
        instead = Counter(own.loc[is_lost, "top_label_candidate"])
        likeness = {target: _likeness(instead, became[target], labels.get(target)) for target in became}
        nearest = max(likeness, key=lambda target: likeness[target], default=None)
        is_alike = nearest is not None and likeness[nearest] >= _NAMED_FROM
        found.append(
            Interference(
                concept=str(concept),
                role=str(own["role_base"].iloc[0]),
                pairs=len(own),
                lost=int(is_lost.sum()),
                change=float((own["is_hit_candidate"].astype(int) - own["is_hit_base"].astype(int)).mean()),
                instead=tuple(instead.most_common()),
                target=nearest if is_alike else None,
                likeness=likeness[nearest] if nearest is not None else 0.0,
            )
        )
    return sorted(found, key=lambda each: (each.change, each.concept))


def target_replacements(measures: pd.DataFrame) -> dict[str, Counter[str]]:
    """Returns what the detector sees first in the candidate's pictures of every target, by target, aliases included."""
    own = measures[(measures["role"] == "target") & (measures["model"] == "candidate")]
    return {str(target): Counter(group["top_label"]) for target, group in own.groupby("concept", sort=False)}


def _target_labels(measures: pd.DataFrame) -> dict[str, str]:
    hits = measures[(measures["role"] == "target") & measures["is_hit"].astype(bool)]
    return {str(target): str(group["top_label"].iloc[0]) for target, group in hits.groupby("concept")}


def _likeness(lost: Counter[str], became: Counter[str], label: str | None) -> float:
    """Returns the overlap of two distributions of labels; a lost picture that shows the target counts in full."""
    shared = sum(
        min(number / lost.total(), became[seen] / became.total()) for seen, number in lost.items() if seen != label
    )
    return shared + (lost[label] / lost.total() if label is not None else 0.0)
