"""`scapre attack` on the reference model, with budgets that are over at once."""

import json
from pathlib import Path

import pytest

import infra.reference
from flows import cli
from flows.attacking import with_attacks
from flows.exit_codes import ExitCode
from validation import Policy
from validation.attacks.budget import DEFAULT_BUDGETS, Budget
from validation.errors import PolicyError

MODEL = Path(infra.reference.__file__).parent / "model"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCAPRE_HOME", str(tmp_path / "home"))


def attack(*options: str) -> int:
    return cli.run(["attack", str(MODEL), "--base", str(MODEL), "--target", "tiger", *options])


def test_an_attack_on_an_unedited_model_prints_and_writes_what_it_found(capsys, tmp_path: Path):
    out = tmp_path / "attack.json"
    assert attack("--attack", "matching", "--steps", "2", "--pictures", "8", "--json", str(out)) == ExitCode.OK
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["concept", "attack", "steps", "before", "after", "random", "at", "most", "by"]
    document = json.loads(out.read_text())
    [found] = document["attacks"]
    assert printed[1].split()[:3] == ["tiger", "matching", "2"]
    assert (found["hits_before"], found["pictures"]) == (found["hits_after"], 8)
    assert found["hits_after"] >= 7
    assert found["hits_random"] <= 3
    assert len(found["vectors"]) == 64
    assert document["base"] == document["candidate"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--attack", "hypnosis"), "'search', 'matching' or 'inversion'"),
        (("--attack", "search", "--steps", "0"), "greater than or equal to 1"),
        (("--attack", "search", "--pictures", "3"), "greater than or equal to 8"),
    ],
)
def test_an_attack_that_could_not_mean_anything_is_bad_input(options: tuple[str, ...], said: str, capsys):
    assert attack(*options) == ExitCode.BAD_INPUT
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_a_concept_that_the_detector_cannot_see_is_refused_by_name(capsys):
    arguments = ["attack", str(MODEL), "--base", str(MODEL), "--target", "unicorn", "--attack", "search"]
    assert cli.run(arguments) == ExitCode.COULD_NOT_JUDGE
    assert "unicorn" in capsys.readouterr().err


def test_named_attacks_take_the_policys_budgets_or_the_default_ones():
    policy = with_attacks(Policy(attacks={"inversion": Budget(steps=9)}), "search, inversion")
    assert policy.attacks == {"search": DEFAULT_BUDGETS["search"], "inversion": Budget(steps=9)}
    with pytest.raises(PolicyError, match=r"found 32 .* raise it or the limit"):
        with_attacks(Policy(attacks={"search": Budget(steps=9, pictures=80)}, robustness_limit=0.05), "search,matching")
