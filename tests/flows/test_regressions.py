"""What counts as worse than at promotion."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.regressions import find_regressions, list_not_passed, subject_names
from flows.requests import TakedownRequest
from validation import GateResult, Policy
from validation.gates import forgetting_gate

POLICY = Policy(sampling="fixed")
NAMES = {"rose": ("req-1#1",), "tulip": ("req-2#1",)}


def forgetting(hits: int, pictures: int = 100, *, concept: str = "rose", pack: str = "direct") -> GateResult:
    return forgetting_gate(concept, hits=hits, pictures=pictures, expected=pictures, policy=POLICY, pack=pack)


def retention(lower: float, upper: float, verdict: str) -> GateResult:
    estimate = (lower + upper) / 2
    return GateResult(
        "retention", verdict, "", role="retained", estimate=estimate, lower=lower, upper=upper, limit=-0.05, pictures=80
    )


def compare(now: list[GateResult], then: list[GateResult]) -> list:
    return find_regressions(now, [gate.describe() for gate in then], names=NAMES)


@given(hits=st.integers(0, 100))
def test_the_same_gates_never_regress(hits):
    assert compare([forgetting(hits)], [forgetting(hits)]) == []


def test_a_gate_that_passed_and_fails_now_is_a_regression_that_names_no_concept():
    (found,) = compare([forgetting(60)], [forgetting(0)])
    assert found.subjects == ("req-1#1",)
    assert "rose" not in str(found)
    assert "rose" not in str(found.describe())
    assert "at promotion in at most" in found.found


def test_within_the_limit_bounds_that_no_longer_overlap_are_a_regression():
    then, now = forgetting(0, 400), forgetting(8, 400)
    assert now.verdict == "passed"
    assert [each.gate for each in compare([now], [then])] == ["forgetting"]
    assert compare([then], [now]) == []


def test_what_is_undecided_now_is_no_regression():
    now = forgetting(2, 20)
    assert now.verdict == "inconclusive"
    assert compare([now], [forgetting(0)]) == []


def test_a_pack_that_was_not_asked_at_promotion_regresses_only_when_it_fails():
    then = [forgetting(0)]
    assert compare([forgetting(0, pack="paraphrase")], then) == []
    (found,) = compare([forgetting(50, pack="paraphrase")], then)
    assert "not asked at promotion" in str(found)


def test_what_did_not_pass_is_listed_without_its_name():
    now = [forgetting(90, concept="tulip"), forgetting(0)]
    assert list_not_passed(now, names=NAMES) == ["forgetting by direct: req-2#1: failed"]


def test_an_attack_that_was_not_tried_at_promotion_regresses_when_it_succeeds():
    now = replace(forgetting(60), gate="robustness", attack="inversion", pack=None)
    (found,) = compare([now], [forgetting(0)])
    assert found.asked_by == "inversion"
    assert compare([now], [now]) == []


@pytest.mark.parametrize("change", [{"is_gated": False}, {"is_control": True}])
def test_controls_and_what_is_only_reported_do_not_regress(change):
    assert compare([replace(forgetting(90), **change)], [forgetting(0)]) == []


def test_retention_regresses_downwards_only():
    before = retention(-0.02, 0.02, "passed")
    assert compare([retention(-0.5, -0.1, "failed")], [before])
    assert compare([retention(0.1, 0.3, "passed")], [before]) == []


def test_a_concept_has_one_opaque_name_for_each_request_that_names_it():
    record = {
        "received": "2026-01-06",
        "ground": "copyright",
        "jurisdiction": "EU",
        "requester": {"name": "A", "role": "artist", "contact": "a@example.org"},
        "subjects": [{"concept": "Rose", "kind": "object"}, {"concept": "pear", "kind": "object"}],
    }
    first = TakedownRequest.model_validate(record)
    names = subject_names({"req-b": first, "req-a": first})
    assert names["rose"] == ("req-a#1", "req-b#1")
    assert names["pear"] == ("req-a#2", "req-b#2")
