import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pandas.errors import MergeError

from validation.expectations import FORGOTTEN, Outcome, check_tables, expectations_gate
from validation.judgement import GateResult, Integrity
from validation.judging import evaluate
from validation.measures import summarise
from validation.policy import Policy
from validation.sampling import asked_plan

WHOLE = Integrity(True, "same bytes")


@pytest.fixture
def check(policy: Policy) -> Callable[..., Outcome]:
    def run(measures: Any, plan: Any, **changes: Any) -> Outcome:
        summary = summarise(measures, confidence=policy.confidence, sampling=policy.sampling)
        asked = asked_plan(measures, plan, policy=policy)
        return check_tables(measures, summary, plan=asked, policy=policy, **changes)

    return run


SCENARIOS = {
    "all forgotten, all kept": {},
    "two residual pictures": {"residual": {"tiger": 2, "dog": 2}},
    "one target inconclusive": {"residual": {"tiger": 6}},
    "one target still drawn": {"residual": {"dog": 158}},
    "one retained concept lost": {"lost": {"cat": 12}},
    "every retained concept lost": {"lost": dict.fromkeys(("cat", "wolf", "pear", "bus", "rose"), 12)},
    "a style lost": {"lost": {"night": 30}},
    "a hidden concept lost": {"lost": {"owl": 8}},
}


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_expectations_answer_as_the_gates_do(
    make_tables: Callable[..., Any], check: Callable[..., Outcome], policy: Policy, scenario: str
):
    measures, plan = make_tables(**SCENARIOS[scenario])
    outcome = check(measures, plan)
    gates = evaluate(measures, plan, policy=policy, integrity=WHOLE)
    assert not outcome.broken
    assert expectations_gate(outcome, gates).verdict == "passed"
    remembered = [g.concept for g in gates if g.gate == "forgetting" and g.verdict != "passed"]
    assert list(outcome.remembered) == sorted(remembered)
    assert outcome.answers[FORGOTTEN] == (not remembered)
    retention = {g.role: g.verdict == "passed" for g in gates if g.gate == "retention"}
    assert {role: outcome.answers[f"{role} concepts survive"] for role in retention} == retention
    assert outcome.is_success == all(g.verdict == "passed" for g in gates if g.is_gated and g.gate != "concept floor")


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("top_score", 1.5, "scores are probabilities"),
        ("top_label", None, "every picture has a label"),
        ("is_blank", True, "pictures are not blank"),
        ("model", "another", "both models were drawn"),
        ("concept", "zebra", "every concept was drawn"),
    ],
)
def test_every_rule_about_pictures_can_fail(
    make_tables: Callable[..., Any], check: Callable[..., Outcome], policy: Policy, column: str, value: Any, rule: str
):
    measures, plan = make_tables()
    row = measures.index[measures["role"] == "hidden"][0]
    measures.loc[row, column] = value
    outcome = check(measures, plan)
    assert not outcome.answers[rule]
    assert not outcome.is_success
    assert expectations_gate(outcome, []).verdict == "failed"


def test_a_missing_and_a_repeated_picture_are_found(make_tables: Callable[..., Any], policy: Policy):
    measures, plan = make_tables()
    summary = summarise(measures, confidence=policy.confidence)
    plan = asked_plan(measures, plan, policy=policy)
    missing = check_tables(measures.iloc[:-1], summary, plan=plan, policy=policy)
    assert not missing.answers["every picture asked for is there"]
    measures.loc[1] = measures.loc[0]
    repeated = check_tables(measures, summary, plan=plan, policy=policy)
    assert not repeated.answers["no picture counts twice"]
    with pytest.raises(MergeError):
        summarise(measures, confidence=policy.confidence)


def test_a_target_without_candidate_pictures_is_not_forgotten(
    make_tables: Callable[..., Any], check: Callable[..., Outcome]
):
    measures, plan = make_tables()
    outcome = check(measures[(measures["concept"] != "dog") | (measures["model"] == "base")], plan)
    assert outcome.remembered == ("dog",)
    assert not outcome.answers["targets were drawn often enough"]
    gone = check(measures[measures["concept"] != "dog"], plan)
    assert not gone.answers["every target was judged"]


def test_a_broken_rule_is_neither_a_pass_nor_a_failed_metric(
    make_tables: Callable[..., Any], check: Callable[..., Outcome], policy: Policy
):
    from great_expectations import expectations as gxe

    broken = gxe.UnexpectedRowsExpectation(
        unexpected_rows_query="SELECT * FROM {batch}", meta={"rule": "rows read by SQL concepts survive"}
    )
    absent = gxe.ExpectColumnMaxToBeBetween(column="nowhere", max_value=1, meta={"rule": "a column that is not there"})
    measures, plan = make_tables()
    outcome = check(measures, plan, further=[broken, absent])
    assert set(outcome.broken) == {"rows read by SQL concepts survive", "a column that is not there"}
    assert not outcome.is_success
    gate = expectations_gate(outcome, evaluate(measures, plan, policy=policy, integrity=WHOLE))
    assert (gate.verdict, gate.is_control) == ("failed", True)
    assert "could not be evaluated" in gate.reason


def test_disagreement_with_the_gates_is_a_failed_control():
    outcome = Outcome(answers={FORGOTTEN: True, "retained concepts survive": True}, broken={}, detail={})
    kept = GateResult("retention", "passed", "", role="retained")
    passed = GateResult("forgetting", "passed", "", "tiger", pack="direct")
    failed = GateResult("forgetting", "failed", "", "tiger", pack="direct")
    styles = GateResult("retention", "passed", "", role="style")
    assert expectations_gate(outcome, [passed, kept]).verdict == "passed"
    assert "the gates say False, the expectation True" in expectations_gate(outcome, [failed, kept]).reason
    assert "'style concepts survive' was not evaluated" in expectations_gate(outcome, [passed, kept, styles]).reason
    other = replace(outcome, answers={FORGOTTEN: False, "retained concepts survive": True}, remembered=("dog",))
    assert "the gates say ('tiger',), the expectation ('dog',)" in expectations_gate(other, [failed, kept]).reason


def test_no_answers_are_no_success():
    assert not Outcome(answers={}, broken={}, detail={}).is_success


def test_the_outcome_is_plain_json_and_the_site_is_built(
    make_tables: Callable[..., Any], check: Callable[..., Outcome], tmp_path: Path
):
    measures, plan = make_tables(residual={"tiger": 2})
    outcome = check(measures, plan, data_docs=tmp_path / "docs")
    described = json.loads(json.dumps(outcome.describe(), allow_nan=False))
    assert described["success"]
    assert not described["is_broken"]
    assert set(described["detail"]) == {"pictures", "targets"}
    assert outcome.site == tmp_path / "docs" / "index.html"
    pages = "".join(page.read_text() for page in (tmp_path / "docs").rglob("*.html"))
    assert "the upper bound at confidence" in pages
    assert "sequential" in pages
    assert "must be shown to fall by at most" in pages


def test_checking_opens_no_connection(
    make_tables: Callable[..., Any], check: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a connection was opened: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    measures, plan = make_tables()
    assert check(measures, plan, data_docs=tmp_path / "docs").is_success


def test_each_check_has_a_context_of_its_own(make_tables: Callable[..., Any], check: Callable[..., Outcome]):
    measures, plan = make_tables()
    lost, _ = make_tables(residual={"tiger": 158})
    assert [check(table, plan).is_success for table in (measures, lost, measures)] == [True, False, True]
