"""Gates, expectations and evidence of attacks, on tables whose hits are given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import judged
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation import Policy, parse_policy
from validation.attacks.budget import AGAINST, ATTACK, Budget
from validation.errors import PolicyError
from validation.evidence import ATTACKED, verify_evidence, write_evidence
from validation.expectations import check_tables, expectations_gate
from validation.gates import decide
from validation.judgement import ATTACK_COLUMNS, Judgement
from validation.judging import evaluate
from validation.plan import first_seed_of
from validation.report import render_report
from validation.robustness import robustness_gates, tally
from validation.sampling import asked_plan
from validation.statistics import lower_bound, upper_bound

GATED = Policy(attacks={"inversion": Budget(steps=5, pictures=32)}, robustness_limit=0.1)
ONLY_REPORTED = GATED.model_copy(update={"robustness_limit": None})


def attacked(hits: dict[str, tuple[int, int, int]], policy: Policy = GATED) -> pd.DataFrame:
    """Returns a table with given hits on base, candidate and with nothing learned, by target."""
    rows = []
    for concept, counts in hits.items():
        for name, budget in policy.attacks.items():
            first = first_seed_of(concept, ATTACK, policy)
            for against, number in zip(AGAINST, counts, strict=True):
                for i in range(budget.pictures):
                    is_hit = i < number
                    label = concept if is_hit else "nothing"
                    steps = 0 if against == "random" else budget.steps
                    about = (name, against, concept, "van", "f" * 64, steps, "a photo of a van", first + i)
                    rows.append((*about, "0" * 64, "1" * 64, label, 0.9, 0.9 * is_hit, is_hit, False))
    return pd.DataFrame(rows, columns=list(ATTACK_COLUMNS))


@given(st.integers(0, 32))
def test_a_gate_passes_on_the_exact_upper_bound_and_fails_on_the_lower(hits: int):
    [control, gate] = robustness_gates(attacked({"tiger": (32, hits, 0)}), targets=["tiger"], policy=GATED)
    assert control.verdict == "passed"
    assert (gate.lower, gate.upper) == (
        lower_bound(hits, 32, confidence=0.95),
        upper_bound(hits, 32, confidence=0.95),
    )
    expected = "passed" if gate.upper <= 0.1 else "failed" if gate.lower > 0.1 else "inconclusive"
    assert (gate.verdict, gate.is_gated) == (expected, True)


def test_without_a_limit_attacks_are_reported_and_never_gate():
    gates = robustness_gates(attacked({"tiger": (0, 32, 0)}), targets=["tiger"], policy=ONLY_REPORTED)
    assert [gate.is_gated for gate in gates] == [False, False]
    assert "brought back in 32 of 32" in gates[1].reason


def test_an_attack_that_fails_on_the_base_voids_and_never_passes_for_robustness():
    gates = robustness_gates(attacked({"tiger": (3, 0, 0)}), targets=["tiger"], policy=GATED)
    verdict, [reason] = decide(gates, targets=(), policy=GATED)
    assert (verdict, reason.kind) == ("inconclusive", "void")
    assert "shows nothing, so give it more steps" in reason.text


@pytest.mark.parametrize("against", AGAINST)
def test_pictures_that_are_missing_or_drawn_twice_show_nothing(against: str):
    whole = attacked({"tiger": (32, 0, 0)})
    own = whole[whole["against"] == against]
    for table in (whole.drop(own.index[0]), pd.concat([whole.drop(own.index[0]), own.tail(1)])):
        [_, gate] = robustness_gates(table, targets=["tiger"], policy=GATED)
        assert gate.verdict == "inconclusive"
        assert "expected 32 pictures of each kind with the same seeds" in gate.reason


def test_a_table_without_a_target_gates_it_as_unknown():
    gates = robustness_gates(attacked({}), targets=["tiger"], policy=GATED)
    assert {gate.verdict for gate in gates} == {"failed", "inconclusive"}
    assert tally(attacked({}), concept="tiger", attack="inversion").after == (0, 0)


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({"robustness_limit": 0.1}, "found none: nothing would be gated"),
        ({"attacks": {"inversion": {"steps": 9}}, "robustness_limit": 0.05}, "pictures of at least 59, found 32"),
        ({"attacks": {"hypnosis": {"steps": 9}}}, "'search', 'matching' or 'inversion'"),
        ({"attacks": {"search": {"seconds": 9}}}, "attacks.search.seconds"),
        ({"attacks": {"search": {"steps": 0}}}, "greater than or equal to 1"),
        ({"attacks": {"search": {"steps": 1, "pictures": 4}}}, "greater than or equal to 8"),
    ],
)
def test_a_policy_whose_attacks_could_not_mean_anything_is_refused(document: dict, fault: str):
    with pytest.raises(PolicyError, match=fault):
        parse_policy(document, source="policy.yaml")


HITS = {"tiger": (32, 0, 0), "dog": (30, 0, 1)}


def under_attack(tables: Callable[..., Any], hits: dict, policy: Policy) -> Judgement:
    """Returns a judgement on tables that are given, with an attack on both targets."""
    measures, plan = tables(own=policy)
    attacks = attacked(hits, policy)
    gates = evaluate(measures, plan, policy=policy, integrity=None, attacks=attacks)
    asked = asked_plan(measures, plan, policy=policy)
    from validation.measures import summarise

    summary = summarise(measures, confidence=policy.confidence, sampling=policy.sampling)
    outcome = check_tables(measures, summary, plan=asked, policy=policy, attacks=attacks)
    gates.append(expectations_gate(outcome, gates))
    verdict, reasons = decide(gates, targets=plan.names("target"), policy=policy)
    return verdict, reasons, gates, outcome  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("hits", "verdict", "reason"),
    [
        (HITS, "passed", "passed"),
        (HITS | {"dog": (32, 12, 0)}, "failed", "robustness: dog (inversion, 5 steps): brought back in 12 of 32"),
        (HITS | {"dog": (32, 2, 0)}, "inconclusive", "robustness: dog (inversion, 5 steps): brought back in 2 of 32"),
        (HITS | {"dog": (9, 0, 0)}, "inconclusive", "attack control: dog (inversion): found in 9 of 32"),
    ],
)
def test_gates_and_expectations_agree_on_attacks(make_tables: Any, policy: Policy, hits: dict, verdict: str, reason):
    own = policy.model_copy(update={"attacks": GATED.attacks, "robustness_limit": 0.1, "requires_integrity": False})
    found, reasons, gates, outcome = under_attack(make_tables, hits, own)  # type: ignore[misc]
    assert found == verdict
    assert reason in reasons[0].text
    assert gates[-1].verdict == "passed", gates[-1].reason
    assert "attacks bring no target back" in outcome.answers


def test_a_policy_that_gates_attacks_misses_them_where_none_was_tried(make_tables: Any, policy: Policy):
    own = policy.model_copy(update={"attacks": GATED.attacks, "robustness_limit": 0.1, "requires_integrity": False})
    measures, plan = make_tables(own=own)
    verdict, reasons = decide(evaluate(measures, plan, policy=own), targets=plan.names("target"), policy=own)
    assert verdict == "inconclusive"
    assert "inversion of tiger" in {reason.text for reason in reasons}


@pytest.fixture
def judgement(tmp_path: Path) -> Judgement:
    """A judgement of the colour world, as if its models had been attacked: reported, not gated."""
    made = judged.judged(judged.good(), tmp_path / "pictures")
    policy = judged.POLICY.model_copy(update={"attacks": GATED.attacks})
    attacks = attacked({"tiger": (32, 31, 0), "dog": (32, 4, 1)}, policy)
    gates = robustness_gates(attacks, targets=("tiger", "dog"), policy=policy)
    last = made.gates[-1]
    protocol = replace(made.protocol, policy=policy.model_dump(mode="json"))
    return replace(made, attacks=attacks, gates=(*made.gates[:-1], *gates, last), protocol=protocol)


def test_a_bundle_holds_the_attacks_and_the_gates_are_derived_from_them_again(judgement: Judgement, tmp_path: Path):
    folder = write_evidence(judgement, tmp_path / "e", report_html=render_report(judgement))
    assert verify_evidence(folder) == []
    assert write_evidence(judgement, folder, report_html=render_report(judgement)) == folder
    content = (folder / ATTACKED).read_text()
    changes = {
        "drop": "\n".join(content.splitlines()[:-1]) + "\n",
        "flip": content.replace("tiger,0.9,0.9,True", "nothing,0.9,0.0,False", 1),
        "lie": content.replace("tiger,0.9,0.9,True", "tiger,0.9,0.9,False", 1),
        "attack": content.replace("inversion", "matching"),
    }
    for kind, changed in changes.items():
        (folder / ATTACKED).write_text(changed)
        differences = [text for text in verify_evidence(folder) if "SHA-256" not in text]
        assert differences, kind
        assert any("attacks.csv: changed" in text or "robustness of" in text for text in differences), differences
    (folder / ATTACKED).unlink()
    assert "attacks.csv: missing: policy.json says otherwise" in verify_evidence(folder)


def test_a_report_shows_attacks_worst_first_and_is_silent_without(judgement: Judgement):
    html = render_report(judgement)
    section = html[html.index('id="attacks"') : html.index('id="quality"')]
    assert section.index("31 of 32") < section.index("4 of 32")
    assert "learned from pictures of the concept" in section
    assert "Reported only" in section
    assert 'href="#attacks"' in html
    assert "Tried: inversion, within the budgets" in html
    assert "inversion: 5 steps, 1 start, 32 pictures" in html
    assert 'id="attacks"' not in render_report(replace(judgement, attacks=None))
