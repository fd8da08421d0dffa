"""The simulation of judgements, in short, and what it finds when the judge is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.verdicts import (
    chances,
    enough_pictures,
    fixed_size,
    judged_chances,
    main,
    peeking_chances,
    simulate,
    wald_bound,
)
from validation import gates
from validation.policy import Policy
from validation.statistics import lower_bound, upper_bound

POLICY = Policy()


def test_at_the_limit_a_target_passes_and_fails_at_most_as_often_as_allowed() -> None:
    at_limit = judged_chances(0.10, POLICY)
    assert 0.03 < at_limit.passed <= 0.05
    assert 0.001 < at_limit.failed <= 0.05


@pytest.mark.parametrize("rate", [0.1, 0.11, 0.15, 0.3])
def test_above_the_limit_a_target_passes_no_more_often(rate: float) -> None:
    assert judged_chances(rate, POLICY).passed <= 0.05


def test_at_a_tenth_of_the_limit_a_target_passes_with_fewer_pictures_than_a_fixed_size_takes() -> None:
    policy = enough_pictures(1, POLICY)
    clear = judged_chances(0.01, policy)
    assert policy.probes_per_target == 82
    assert clear.passed >= 0.95
    assert fixed_size(policy, power=0.95) == 61
    assert wald_bound(policy, power=clear.passed) < clear.pictures < 42


def test_a_target_that_is_still_drawn_fails_at_the_first_look() -> None:
    drawn = judged_chances(0.9, POLICY)
    assert drawn.failed > 0.9999
    assert drawn.pictures < 8.1


def test_looking_again_and_again_at_fixed_size_bounds_passes_too_often() -> None:
    assert peeking_chances(0.10, POLICY).passed > 0.10


def test_ten_targets_pass_together_with_the_default_number_of_pictures() -> None:
    assert enough_pictures(10, Policy(probes_per_target=32)).probes_per_target == POLICY.probes_per_target


def test_chances_are_those_of_a_coin_without_a_rule() -> None:
    two = chances(
        0.25,
        verdict=lambda hits, pictures: "passed" if hits == 0 else "failed" if hits == 2 else "inconclusive",
        stage=lambda hits, pictures: 1 if pictures < 2 else 0,
    )
    assert (two.passed, two.failed, two.pictures) == pytest.approx((0.75**2, 0.25**2, 2.0))


@pytest.mark.parametrize("rates", [[0.10], [0.01], [0.10, 0.0, 0.0]])
def test_simulated_judgements_agree_with_the_computed_chances(rates: list[float]) -> None:
    found = simulate(rates, policy=POLICY, judgements=1500, seed=3)
    assert found.judgements == 1500
    computed = judged_chances(rates[0], POLICY).passed
    low, high = (bound(found.passed, found.judgements, confidence=0.9999) for bound in (lower_bound, upper_bound))
    assert low <= computed <= high


def test_the_report_is_written_and_all_bars_are_met(tmp_path: Path) -> None:
    assert main(["--targets", "1", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "verdicts.json").read_text(encoding="utf-8"))
    assert [(line["targets"], line["planned"]) for line in record["lines"]] == [(1, 82), (1, 158)]
    assert {line["one_at_limit"]["judgements"] for line in record["lines"]} == {10_000}


def test_a_judge_that_rests_on_fixed_size_bounds_misses_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def naive(hits: int, pictures: int, policy: Policy) -> tuple[Any, Any]:
        return tuple(bound(hits, pictures, confidence=policy.confidence) for bound in (lower_bound, upper_bound))

    monkeypatch.setattr(gates, "residual_bounds", naive)
    assert main(["--targets", "1", "--judgements", "200", "--out", str(tmp_path)]) == 1
