"""Who is damaged, and which target went the same way."""

from collections.abc import Sequence

import pandas as pd
import pytest

from validation.interference import find_interference, target_replacements
from validation.measures import pair_up


def table(*concepts: tuple[str, str, Sequence[str], Sequence[str]]) -> pd.DataFrame:
    """Returns measures from concept, role, and what is seen before and after, picture by picture."""
    rows = []
    for concept, role, before, after in concepts:
        for model, seen in (("base", before), ("candidate", after)):
            for seed, label in enumerate(seen):
                key = {"model": model, "role": role, "concept": concept, "pack": "direct", "prompt": concept}
                rows.append(key | {"seed": seed, "top_label": label, "is_hit": label == concept})
    return pd.DataFrame(rows)


TIGER = ("tiger", "target", ["tiger"] * 4, ["cat", "cat", "cat", "lion"])
APPLE = ("apple", "target", ["apple"] * 4, ["pear"] * 4)


def test_the_damaged_are_ordered_and_the_unharmed_are_left_out():
    measures = table(
        TIGER,
        ("wolf", "retained", ["wolf"] * 4, ["wolf"] * 4),
        ("lion", "retained", ["lion"] * 4, ["lion", "lion", "lion", "cat"]),
        ("plum", "hidden", ["plum"] * 4, ["pear"] * 4),
        ("owl", "hidden", ["crab", "owl"], ["crab", "owl"]),
    )
    assert [(each.concept, each.lost, each.pairs) for each in find_interference(measures)] == [
        ("plum", 4, 4),
        ("lion", 1, 4),
    ]


@pytest.mark.parametrize(
    ("after", "target", "likeness"),
    [
        (["cat", "cat", "cat", "lion"], "tiger", 1.0),
        (["pear", "pear", "pear", "pear"], "apple", 1.0),
        (["cat", "cat", "pear", "pear"], "tiger", 0.5),
        (["tiger", "tiger", "tiger", "pear"], "tiger", 0.75),
        (["cat", "bus", "bus", "bus"], None, 0.25),
        (["bus", "bus", "bus", "bus"], None, 0.0),
    ],
)
def test_the_target_that_went_the_same_way_is_named(after: list[str], target: str | None, likeness: float):
    (found,) = find_interference(table(TIGER, APPLE, ("plum", "hidden", ["plum"] * 4, after)))
    assert found.target == target
    assert found.likeness == pytest.approx(likeness)
    assert found.change == -1
    assert dict(found.instead) == {label: after.count(label) for label in after}


def test_what_targets_became_is_counted_in_the_candidate():
    assert target_replacements(table(TIGER, APPLE)) == {"tiger": {"cat": 3, "lion": 1}, "apple": {"pear": 4}}


def test_a_picture_without_its_partner_is_no_pair():
    measures = table(TIGER, ("plum", "hidden", ["plum", "plum"], ["pear"]))
    assert len(pair_up(measures[measures["role"] == "hidden"], "is_hit")) == 1
    assert find_interference(measures)[0].pairs == 1
