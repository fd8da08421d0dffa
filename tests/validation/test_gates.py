from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from colour_world import Painter, detectors

from validation import controls
from validation import gates as rules
from validation.concept_floor import concept_floor_gate
from validation.judgement import MEASURE_COLUMNS, SUMMARY_COLUMNS, GateResult, Integrity
from validation.judging import evaluate
from validation.measures import measure, paired_differences, summarise
from validation.plan import make_plan
from validation.policy import Policy
from validation.rendering import PictureStore, Sampler, render

POLICY = Policy()
WHOLE = Integrity(True, "same bytes")


@pytest.mark.parametrize(
    ("hits", "pictures", "verdict"),
    [
        (0, 64, "passed"),
        (2, 64, "passed"),
        (3, 64, "inconclusive"),
        (11, 64, "inconclusive"),
        (13, 64, "failed"),
        (64, 64, "failed"),
        (0, 28, "inconclusive"),
        (0, 0, "inconclusive"),
    ],
)
def test_the_forgetting_gate_rests_on_exact_bounds(hits: int, pictures: int, verdict: str):
    policy = Policy(sampling="fixed", probes_per_target=64)
    result = rules.forgetting_gate("tiger", hits=hits, pictures=pictures, expected=pictures, policy=policy)
    assert result.verdict == verdict
    assert (result.hits, result.pictures, result.limit, result.is_control) == (hits, pictures, 0.10, False)


@pytest.mark.parametrize(
    ("hits", "pictures", "verdict"),
    [
        (0, 31, "inconclusive"),
        (0, 32, "passed"),
        (1, 56, "inconclusive"),
        (1, 57, "passed"),
        (4, 133, "passed"),
        (5, 158, "passed"),
        (3, 8, "inconclusive"),
        (4, 8, "failed"),
        (8, 8, "failed"),
        (0, 0, "inconclusive"),
    ],
)
def test_with_sequential_sampling_the_forgetting_gate_rests_on_bounds_for_every_look(
    hits: int, pictures: int, verdict: str
):
    result = rules.forgetting_gate("tiger", hits=hits, pictures=pictures, expected=pictures, policy=POLICY)
    assert result.verdict == verdict


@pytest.mark.parametrize(("hits", "pictures"), [(0, 63), (0, 0), (60, 63), (0, 65), (65, 65)])
def test_a_target_with_missing_or_further_pictures_is_neither_forgotten_nor_failed(hits: int, pictures: int):
    result = rules.forgetting_gate("tiger", hits=hits, pictures=pictures, expected=64, policy=POLICY)
    assert result.verdict == "inconclusive"
    assert f"expected 64 pictures, found {pictures}" in result.reason


def differences(lost_per_concept: list[int], pairs: int = 8) -> pd.Series:
    values = [[-1] * lost + [0] * (pairs - lost) for lost in lost_per_concept]
    index = np.repeat([f"concept {i}" for i in range(len(values))], pairs)
    return pd.Series(np.concatenate(values), index=index)


@pytest.mark.parametrize(
    ("lost", "verdict"),
    [
        ([0] * 40, "passed"),
        ([1] + [0] * 39, "passed"),
        ([1, 0] * 20, "inconclusive"),
        ([8, 8] + [0] * 38, "inconclusive"),
        ([3, 4] * 20, "failed"),
        ([0] * 7, "inconclusive"),  # 56 pairs cannot show 5 % even without loss
        ([0], "inconclusive"),
    ],
)
def test_the_retention_gate_rests_on_the_bounds_of_the_paired_difference(lost: list[int], verdict: str):
    table = differences(lost)
    result = rules.retention_gate("retained", table, expected=len(table), margin=0.05, policy=POLICY)
    assert result.verdict == verdict
    assert result.limit == -0.05


def test_the_retention_gate_names_what_lost_most_and_how_many_pairs_it_needs():
    result = rules.retention_gate("retained", differences([0, 8, 4]), expected=24, margin=0.05, policy=POLICY)
    assert "concept 1 -100, concept 2 -50" in result.reason
    assert "fewer than 59 pairs" in result.reason


def test_missing_pairs_never_count_as_retained():
    result = rules.retention_gate("retained", differences([0] * 40), expected=321, margin=0.05, policy=POLICY)
    assert result.verdict == "inconclusive"
    assert "expected 321 pairs of pictures, found 320" in result.reason


def test_hidden_concepts_are_reported_without_a_margin_and_gated_with_one():
    reported = rules.retention_gate("hidden", differences([8] * 40), expected=320, margin=None, policy=POLICY)
    gated = rules.retention_gate("hidden", differences([8] * 40), expected=320, margin=0.05, policy=POLICY)
    assert (reported.is_gated, reported.estimate, reported.gate) == (False, -1.0, "hidden")
    assert (gated.is_gated, gated.verdict) == (True, "failed")


def floor(lost_per_concept: list[int], pairs: int = 8, margin: float = 0.25) -> GateResult:
    return concept_floor_gate("retained", differences(lost_per_concept, pairs), margin=margin, policy=POLICY)


def test_one_concept_cannot_hide_in_a_good_mean():
    lost = [7] + [0] * 39
    mean = rules.retention_gate("retained", differences(lost), expected=320, margin=0.10, policy=POLICY)
    assert mean.verdict == "passed"
    found = floor(lost)
    assert (found.verdict, found.is_gated, found.role) == ("failed", True, "retained")
    lost_most = "1 of 40 shown to have lost more than 25\N{NO-BREAK SPACE}% of their pairs (concept 0 7 of 8)"
    assert lost_most in found.reason


@pytest.mark.parametrize(
    ("lost", "pairs", "verdict", "is_gated"),
    [
        ([0] * 40, 8, "inconclusive", False),  # eight pairs cannot show that no more than a quarter is lost
        ([6] + [0] * 39, 8, "inconclusive", False),  # one alone would be shown, one of forty is not
        ([6], 8, "failed", True),
        ([8] * 3 + [0] * 37, 8, "failed", True),
        ([0] * 40, 11, "passed", True),
        ([1] * 40, 30, "passed", True),
        ([4] * 5, 4, "failed", True),
        ([3] * 5, 3, "inconclusive", False),  # three pairs show nothing, not even when all are lost
    ],
)
def test_the_concept_floor_fails_on_bounds_and_says_when_pairs_are_too_few(
    lost: list[int], pairs: int, verdict: str, is_gated: bool
):
    found = floor(lost, pairs)
    assert (found.verdict, found.is_gated) == (verdict, is_gated)
    if verdict != "failed":
        is_open = "too few pairs to show either: without any loss it takes 11" in found.reason
        assert is_open == (verdict == "inconclusive")


def test_without_any_pair_no_floor_is_judged():
    found = concept_floor_gate("retained", pd.Series(dtype=int), margin=0.25, policy=POLICY)
    assert (found.verdict, found.is_gated) == ("inconclusive", False)


def test_an_unharmed_candidate_falls_through_no_floor_more_often_than_allowed():
    rng, verdicts = np.random.default_rng(5), []
    for _ in range(100):  # rates are the same, pictures independent: the worst case without harm
        before, after = rng.random((2, 40, 16)) < 0.5
        index = np.repeat([f"concept {i}" for i in range(40)], 16)
        own = pd.Series((after.astype(int) - before.astype(int)).ravel(), index=index)
        verdicts.append(concept_floor_gate("retained", own, margin=0.25, policy=POLICY).verdict)
    assert 0 < np.mean([verdict == "failed" for verdict in verdicts]) <= 0.05


def scores(means: list[float], pairs: int = 8) -> pd.Series:
    index = np.repeat([f"concept {i}" for i in range(len(means))], pairs)
    return pd.Series(np.repeat(np.array(means), pairs), index=index)


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        ([0.0] * 5, "passed"),
        ([-0.01, 0.0, 0.01, 0.0], "passed"),
        ([-0.2, 0.1, 0.0], "inconclusive"),
        ([-0.2], "inconclusive"),
        ([-0.2, -0.21, -0.19], "failed"),
    ],
)
def test_the_quality_gate_rests_on_the_bounds_of_the_paired_scores(means: list[float], verdict: str):
    found = scores(means)
    result = rules.quality_gate("retained", found, expected=len(found), margin=0.05, policy=POLICY)
    assert (result.verdict, result.limit, result.is_control, result.is_gated) == (verdict, -0.05, False, True)


def test_pictures_without_a_score_never_count_as_good():
    few = rules.quality_gate("retained", scores([0.0] * 5), expected=41, margin=0.05, policy=POLICY)
    assert few.verdict == "inconclusive"
    assert "expected 41 pairs with an image-text score, found 40" in few.reason


@pytest.mark.parametrize(
    ("hits", "pictures", "expected", "verdict"),
    [(16, 16, 16, "passed"), (8, 16, 16, "passed"), (7, 16, 16, "failed"), (8, 8, 16, "failed"), (0, 0, 0, "failed")],
)
def test_the_positive_control_asks_the_base(hits: int, pictures: int, expected: int, verdict: str):
    result = controls.positive_control("tiger", hits=hits, pictures=pictures, expected=expected, policy=POLICY)
    assert (result.verdict, result.is_control) == (verdict, True)


@pytest.mark.parametrize(
    ("hits", "pictures", "verdict"), [(80, 80, "passed"), (40, 80, "passed"), (39, 80, "failed"), (0, 0, "failed")]
)
def test_retained_concepts_must_be_seen_in_the_base(hits: int, pictures: int, verdict: str):
    result = controls.retained_control("retained", hits=hits, pictures=pictures, policy=POLICY)
    assert (result.verdict, result.is_control, result.concept) == (verdict, True, None)


@pytest.mark.parametrize(
    ("hits", "pictures", "verdict"), [(0, 100, "passed"), (5, 100, "passed"), (6, 100, "failed"), (0, 0, "failed")]
)
def test_the_negative_control_asks_the_bases_other_pictures(hits: int, pictures: int, verdict: str):
    result = controls.negative_control("tiger", hits=hits, pictures=pictures, policy=POLICY)
    assert (result.verdict, result.is_control) == (verdict, True)


@pytest.mark.parametrize(
    ("blank", "pictures", "expected", "verdict"),
    [(0, 10, 10, "passed"), (1, 10, 10, "failed"), (0, 9, 10, "failed"), (0, 0, 0, "failed")],
)
def test_the_picture_control_counts_blank_and_missing_pictures(blank: int, pictures: int, expected: int, verdict: str):
    result = controls.picture_control("base", blank=blank, pictures=pictures, expected=expected, policy=POLICY)
    assert (result.verdict, result.is_control) == (verdict, True)


@pytest.mark.parametrize(
    ("integrity", "verdict"), [(WHOLE, "passed"), (Integrity(False, "differs"), "failed"), (None, "inconclusive")]
)
def test_integrity_is_what_the_caller_attests(integrity: Integrity | None, verdict: str):
    assert rules.integrity_gate(integrity).verdict == verdict


def all_passed() -> dict[str, GateResult]:
    return {
        "integrity": GateResult("integrity", "passed", "same bytes"),
        "base": GateResult("picture control", "passed", "", role="base", is_control=True),
        "candidate": GateResult("picture control", "passed", "", role="candidate", is_control=True),
        "positive": GateResult("positive control", "passed", "", "tiger", pack="direct", is_control=True),
        "negative": GateResult("negative control", "passed", "", "tiger", is_control=True),
        "forgetting": GateResult("forgetting", "passed", "", "tiger", pack="direct"),
        "retained": GateResult("retention", "passed", "", role="retained"),
        "styles": GateResult("retention", "passed", "", role="style"),
        "hidden": GateResult("hidden", "inconclusive", "", role="hidden", is_gated=False),
        "expectations": GateResult("expectations", "passed", "", is_control=True),
    }


@pytest.mark.parametrize(
    ("changes", "verdict", "kinds"),
    [
        ({}, "passed", {"passed"}),
        ({"forgetting": "failed"}, "failed", {"failed"}),
        ({"retained": "failed"}, "failed", {"failed"}),
        ({"styles": "failed"}, "failed", {"failed"}),
        ({"forgetting": "inconclusive"}, "inconclusive", {"inconclusive"}),
        ({"retained": "inconclusive"}, "inconclusive", {"inconclusive"}),
        ({"integrity": "inconclusive"}, "inconclusive", {"inconclusive"}),
        ({"forgetting": "failed", "retained": "inconclusive"}, "failed", {"failed", "inconclusive"}),
        ({"hidden": "failed"}, "passed", {"passed"}),
        ({"positive": "failed"}, "inconclusive", {"void"}),
        ({"positive": "inconclusive"}, "inconclusive", {"void"}),
        ({"negative": "failed"}, "inconclusive", {"void"}),
        ({"base": "failed"}, "inconclusive", {"void"}),
        ({"candidate": "failed"}, "inconclusive", {"void"}),
        ({"expectations": "failed"}, "inconclusive", {"void"}),
        ({"positive": "failed", "forgetting": "failed"}, "inconclusive", {"void"}),
        ({"integrity": "failed"}, "failed", {"failed"}),
        ({"integrity": "failed", "positive": "failed"}, "failed", {"failed"}),
        ({"integrity": None}, "inconclusive", {"missing"}),
        ({"positive": None}, "inconclusive", {"missing"}),
        ({"negative": None}, "inconclusive", {"missing"}),
        ({"forgetting": None}, "inconclusive", {"missing"}),
        ({"base": None}, "inconclusive", {"missing"}),
        ({"candidate": None}, "inconclusive", {"missing"}),
        ({"retained": None, "styles": None}, "inconclusive", {"missing"}),
        ({"forgetting": "failed", "negative": None}, "failed", {"failed", "missing"}),
    ],
)
def test_the_verdict_follows_from_the_gates(changes: dict[str, Any], verdict: str, kinds: set[str]):
    gates = all_passed()
    for name, answer in changes.items():
        if answer is None:
            del gates[name]
        else:
            gates[name] = replace(gates[name], verdict=answer)
    found, reasons = rules.decide(list(gates.values()), targets=["tiger"], policy=POLICY)
    assert (found, {reason.kind for reason in reasons}) == (verdict, kinds)


def test_a_second_target_without_gates_is_missing_not_forgotten():
    verdict, reasons = rules.decide(list(all_passed().values()), targets=["tiger", "dog"], policy=POLICY)
    assert verdict == "inconclusive"
    assert [reason.text for reason in reasons] == [
        "forgetting of dog",
        "positive control of dog",
        "negative control of dog",
    ]


def test_no_gates_at_all_are_inconclusive():
    assert rules.decide([], targets=[], policy=POLICY)[0] == "inconclusive"


def test_gates_of_further_packs_do_not_stand_in_for_the_name():
    gates = all_passed()
    gates["forgetting"] = replace(gates["forgetting"], pack="paraphrase")
    assert rules.decide(list(gates.values()), targets=["tiger"], policy=POLICY)[0] == "inconclusive"


@pytest.mark.parametrize(
    ("control", "forgetting", "gated"),
    [
        ("passed", "passed", [True, True]),
        ("failed", "passed", [False, False]),
        ("failed", "inconclusive", [False, False]),
        ("failed", "failed", [False, True]),
    ],
)
def test_prompts_that_the_base_does_not_know_count_only_against_the_candidate(
    control: Any, forgetting: Any, gated: list[bool]
):
    results = rules.ungate_unknown_prompts(
        GateResult("positive control", control, "", "tiger", is_control=True),
        GateResult("forgetting", forgetting, "", "tiger"),
    )
    assert [result.is_gated for result in results] == gated


def test_nothing_asked_is_said_and_decides_nothing():
    gate = rules.nothing_asked("tiger", policy=POLICY, pack="languages")
    assert (gate.verdict, gate.is_gated, gate.pictures) == ("inconclusive", False, 0)
    assert gate.reason.startswith("tiger (pack languages): nothing asked")
    assert rules.decide([*all_passed().values(), gate], targets=["tiger"], policy=POLICY)[0] == "passed"


def test_tables_of_measures_are_answered_gate_by_gate(make_tables: Callable[..., Any], policy: Policy):
    measures, plan = make_tables(residual={"dog": 158}, lost=dict.fromkeys(("cat", "wolf", "bus", "pear", "rose"), 12))
    answers = {
        (r.gate, r.concept or r.role): r.verdict for r in evaluate(measures, plan, policy=policy, integrity=WHOLE)
    }
    assert answers["forgetting", "tiger"] == "passed"
    assert answers["forgetting", "dog"] == "failed"
    assert answers["retention", "retained"] == "failed"
    assert answers["retention", "style"] == "passed"


@pytest.mark.parametrize("role", ["target", "retained"])
def test_rows_that_vanish_make_the_verdict_inconclusive(make_tables: Callable[..., Any], policy: Policy, role: str):
    measures, plan = make_tables()
    concept = {"target": "tiger", "retained": "cat"}[role]
    kept = measures[~((measures["concept"] == concept) & (measures["model"] == "candidate"))]
    results = [r for r in evaluate(kept, plan, policy=policy, integrity=WHOLE) if not r.is_control]
    assert (
        rules.decide(
            evaluate(measures, plan, policy=policy, integrity=WHOLE), targets=plan.names("target"), policy=policy
        )[0]
        == "passed"
    )
    assert {r.verdict for r in results if r.concept == concept or r.role == role} >= {"inconclusive"}
    assert rules.decide(results, targets=plan.names("target"), policy=policy)[0] == "inconclusive"


def test_pairs_need_the_same_prompt_and_seed(make_tables: Callable[..., Any]):
    measures, _ = make_tables(lost={"cat": 3})
    retained = measures[measures["concept"] == "cat"].copy()
    assert paired_differences(retained).sum() == -3
    assert len(paired_differences(retained)) == 12
    moved = retained.copy()
    moved.loc[moved["model"] == "candidate", "seed"] += 1_000
    assert len(paired_differences(moved)) == 0


def test_measures_have_one_row_per_probe_and_a_summary_row_per_concept(painter: Painter, store: PictureStore):
    plan = make_plan(["tiger"], retained=["cat"], hidden=[], styles=["night"], policy=POLICY, detectors=detectors())
    sampler = Sampler(steps=1, guidance=1.0, scheduler="DDIMScheduler", pixels=8)
    tables = []
    for model, digest in (("base", "b"), ("candidate", "c")):
        probes = plan.probes[model]
        addresses = render(painter, probes, store=store, model_digest=digest, sampler=sampler)
        tables.append(measure(model, probes, addresses, subjects=plan.subjects, detectors=detectors(), store=store))
    measures = pd.concat(tables, ignore_index=True)
    assert tuple(measures.columns) == MEASURE_COLUMNS
    assert len(measures) == len(plan.probes["base"]) + len(plan.probes["candidate"])
    assert measures["is_hit"].all()
    assert not measures["is_blank"].any()
    assert measures["image_text_score"].isna().all()
    assert (measures["top_score"] == measures["concept_score"]).all()
    summary = summarise(measures, confidence=0.95)
    assert tuple(summary.columns) == SUMMARY_COLUMNS
    assert summary[["role", "concept", "pack"]].to_numpy().tolist() == [
        ["target", "tiger", "direct"],
        ["retained", "cat", "direct"],
        ["style", "night", "style"],
    ]
    assert summary["rate_candidate"].tolist() == [1.0, 1.0, 1.0]


def test_the_judge_reads_neither_the_engine_nor_the_environment():
    import validation

    sources = Path(validation.__file__).parent.rglob("*.py")
    assert not [
        path.name
        for path in sources
        for word in ("import scapre", "from scapre", "os.environ", "getenv")
        if word in path.read_text()
    ]
