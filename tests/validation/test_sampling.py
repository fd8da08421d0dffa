from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from colour_world import Painter
from hypothesis import given
from hypothesis import strategies as st

from validation import Judgement
from validation.gates import residual_verdict
from validation.policy import Policy
from validation.sampling import asked_plan, next_stage, pictures_asked, places_asked

POLICY = Policy()
FIXED = Policy(sampling="fixed", probes_per_target=64)


@pytest.mark.parametrize(
    ("hits", "pictures", "stage"),
    [(0, 0, 8), (0, 24, 8), (0, 32, 0), (1, 32, 8), (1, 56, 1), (1, 57, 0), (4, 8, 0), (6, 152, 6), (6, 158, 0)],
)
def test_stages_end_on_the_picture_that_may_decide(hits: int, pictures: int, stage: int):
    assert next_stage(hits, pictures, planned=158, policy=POLICY) == stage


@pytest.mark.parametrize(("pictures", "stage"), [(0, 64), (10, 54), (64, 0), (65, 0)])
def test_fixed_sampling_draws_what_is_planned(pictures: int, stage: int):
    assert next_stage(0, pictures, planned=64, policy=FIXED) == stage


@given(st.floats(0, 1), st.integers(0, 2**32), st.integers(32, 150), st.integers(1, 20))
def test_the_rule_stops_once_decided_and_asks_for_the_same_again_when_replayed(
    rate: float, seed: int, planned: int, stage_size: int
):
    policy = Policy(stage_size=stage_size, probes_per_target=planned, probes_per_target_base=1)
    outcomes = (np.random.default_rng(seed).random(planned) < rate).tolist()
    asked = pictures_asked(outcomes, planned=planned, policy=policy)
    assert 1 <= asked <= planned
    verdict = residual_verdict(sum(outcomes[:asked]), asked, policy)
    assert verdict != "inconclusive" or asked == planned
    assert pictures_asked(outcomes[:asked], planned=planned, policy=policy) == asked
    assert pictures_asked(outcomes[: asked - 1], planned=planned, policy=policy) >= asked  # one is missing


def test_targets_are_sampled_on_their_own_and_everything_else_is_drawn_as_planned(make_tables: Callable[..., Any]):
    measures, plan = make_tables(residual={"dog": 158}, lost={"cat": 12})
    asked = asked_plan(measures, plan, policy=POLICY).expected("candidate")
    planned = plan.expected("candidate")
    assert {key: asked[key] for key in planned if asked[key] != planned[key]} == {
        ("tiger", "direct"): 32,
        ("dog", "direct"): 8,
    }
    nothing = places_asked(measures.iloc[:0], plan, policy=POLICY)
    assert len(nothing) == len(plan.probes["candidate"]) - 2 * (158 - 8)


def test_a_judgement_draws_what_the_rule_asks_for_in_the_plans_order(
    judge_world: Callable[..., Judgement], painter: Painter
):
    candidate = painter.forgetting("tiger").forgetting("dog", share=0.97)
    judgement = judge_world(candidate)
    drawn = judgement.measures[judgement.measures["model"] == "candidate"]
    outcomes = {name: own["is_hit"].tolist() for name, own in drawn[drawn["role"] == "target"].groupby("concept")}
    assert len(outcomes["tiger"]) == 32
    assert len(outcomes["dog"]) == pictures_asked(outcomes["dog"], planned=158, policy=POLICY)
    keys = ["model", "role", "concept", "pack", "prompt", "seed"]
    planned = judgement.planned.reset_index(names="place")
    place = judgement.measures.merge(planned, on=keys, how="left", validate="one_to_one")["place"]
    assert place.is_monotonic_increasing
    assert len(candidate.drawn) == len(drawn)


def test_sequential_and_fixed_sampling_agree_on_clear_cases(judge_world: Callable[..., Judgement], painter: Painter):
    fixed = Policy(sampling="fixed", probes_per_target=64, probes_per_retained=12, probes_per_style=30)
    for candidate, verdict in ((painter.forgetting("tiger").forgetting("dog"), "passed"), (painter.copy(), "failed")):
        early, late = judge_world(candidate), judge_world(candidate, policy=fixed)
        assert (early.verdict, late.verdict) == (verdict, verdict)
        assert len(early.measures) < len(late.measures)
        rows = early.measures[early.measures["role"] == "target"]
        pd.testing.assert_frame_equal(  # a picture that both asked for is the same picture
            rows.merge(late.measures)[rows.columns].reset_index(drop=True),
            rows.reset_index(drop=True),
            check_dtype=False,
        )
