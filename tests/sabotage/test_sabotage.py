"""Nothing that is broken passes, each for the right reason; what is unbroken does. `make sabotage`: the real model."""

from pathlib import Path

import pytest

from tests.sabotage.scenarios import SCENARIOS, Bench, Scenario
from tests.sabotage.worlds import ColourWorld

HERE = [scenario for scenario in SCENARIOS if "colour" in scenario.worlds]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.mark.parametrize("scenario", HERE, ids=lambda scenario: scenario.name)
def test_the_answer_is_the_right_one(scenario: Scenario, tmp_path: Path, pictures: Path) -> None:
    found = scenario.run(Bench(ColourWorld(), tmp_path, pictures))
    assert scenario.faults(found) == [], found.said


def test_every_name_is_one_scenario_and_only_unbroken_ones_may_pass() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    assert all((scenario.answer == "passed") == scenario.name.startswith("unbroken") for scenario in SCENARIOS)
    assert sum(scenario.answer != "passed" for scenario in SCENARIOS) >= 12
