"""`scapre packs` and what `scapre judge` makes of packs and detectors."""

from pathlib import Path

import pytest

from flows import cli
from flows.errors import BadRequestError
from flows.exit_codes import ExitCode
from flows.questions import ask, choose_detectors
from infra.settings import load_settings
from validation.errors import ProbeError
from validation.probe_packs import load_pack, pack_names

MODEL = str(Path(__file__).parents[2] / "infra" / "reference" / "model")
DETECTORS = Path(__file__).parents[2] / "infra" / "reference" / "detectors"


@pytest.fixture
def scapre(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SCAPRE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(list(arguments))
        return code, *capsys.readouterr()

    return run


def test_every_pack_is_listed_with_version_and_digest(scapre):
    code, out, _ = scapre("packs", "list")
    assert code == ExitCode.OK
    for name in pack_names():
        assert f"{name} " in out
        assert load_pack(name).digest[:12] in out


def test_a_pack_is_shown_with_what_it_asks_and_for_which_concepts(scapre):
    _, out, _ = scapre("packs", "show", "confuse5")
    assert load_pack("confuse5").digest in out
    assert "targets: tabby, tiger cat" in out
    assert "a photo of {a_concept}" in out


def test_the_prompts_for_a_concept_are_shown_or_said_to_be_none(scapre):
    assert "老虎的照片" in scapre("packs", "show", "languages", "--concept", "tiger")[1].splitlines()
    assert "nothing is asked" in scapre("packs", "show", "languages", "--concept", "unicorn")[1]
    assert "a photo of a cub" in scapre("packs", "show", "alias", "--concept", "tiger", "--alias", "cub")[1]
    assert "fog" in scapre("packs", "show", "composition", "--concept", "fog", "--style")[1]


def test_a_pack_of_ones_own_is_checked(scapre, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nversion: 1\nabout: mine\nwordings:\n  - templates: ['a {concept}']\n")
    code, out, _ = scapre("packs", "check", str(own))
    assert (code, "own, version 1" in out) == (ExitCode.OK, True)
    own.write_text("name: own\nversion: 1\nabout: mine\nwordings:\n  - templates: ['a {concept}', 'a {concept}']\n")
    code, _, errors = scapre("packs", "check", str(own))
    assert code == ExitCode.BAD_INPUT
    assert "every template once" in errors
    assert errors.count("\n") == 1


def test_a_question_takes_its_concepts_from_a_pack():
    question = ask([], retain=["dog"], pack="confuse5")
    assert len(question.targets) == 10
    assert question.retained[:2] == ("dog", "German shepherd")
    alone = ask(["tabby"], retain=[], pack="confuse5")
    assert [target.name for target in alone.targets] == ["tabby"]
    assert alone.retained == ("tiger cat", "Persian cat", "Siamese cat", "Egyptian cat")
    assert {target.kind for target in ask([], retain=[], pack="artists50").targets} == {"style"}
    assert ask([], retain=[], pack="explicit").targets[0].kind == "unsafe"
    with pytest.raises(BadRequestError, match="a `--pack` with targets"):
        ask([], retain=[], pack="languages")
    with pytest.raises(ProbeError, match="nope"):
        ask([], retain=[], pack="nope")


def test_a_clip_model_knows_what_is_asked_for_and_unrelated_things():
    settings, clip = load_settings({}, device="cpu"), f"clip:{DETECTORS / 'clip'}"
    detectors = choose_detectors([clip], ask(["tiger", "house"], retain=["cat"], pack=None), settings)
    assert detectors.object.labels[:3] == ("tiger", "house", "cat")
    assert len(detectors.object.labels) == 3 + len(load_pack("unrelated").concepts) - 1
    styles = choose_detectors([clip], ask([], retain=[], pack="artists50"), settings)
    assert styles.style is not None
    assert len(styles.style.labels) == 60
    assert styles.object.labels == load_pack("unrelated").concepts


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (["resnet"], "classifier:FOLDER"),
        (["clip:"], "classifier:FOLDER"),
        (["clip:a", "classifier:b"], "one classifier or CLIP model"),
        (["nudenet"], "--target 'explicit content'"),
    ],
)
def test_a_detector_that_cannot_be_meant_is_refused(choices: list[str], said: str):
    with pytest.raises(BadRequestError, match=said):
        choose_detectors(choices, ask(["tiger"], retain=[], pack=None), load_settings({}, device="cpu"))


@pytest.mark.parametrize(
    ("arguments", "policy", "said"),
    [
        (("--target", "tigger"), "", "found 'tigger'; nearest of its 132 labels: tiger"),
        (("--target", "tiger", "--retain", "catt"), "", "found catt"),
        (("--target", "tiger", "--retain", "cat"), "further_packs: {languags: 32}", "found 'languags'"),
        (("--target", "tiger", "--retain", "cat"), "further_packs: {EMPTY: 32}", "the pack is empty"),
        (("--target", "tiger", "--retain", "cat"), "probes: 3", "known keys"),
        (("--pack", "imagenette"), "", "barracouta"),
        ((), "", "a `--pack` with targets"),
    ],
)
def test_bad_input_is_named_before_any_picture_is_drawn(scapre, tmp_path, arguments, policy: str, said: str):
    empty = tmp_path / "empty.yaml"
    empty.write_text("name: empty\nversion: 1\nabout: nothing is left in it\nwordings: []\n")
    rules = tmp_path / "policy.yaml"
    rules.write_text(policy.replace("EMPTY", str(empty)) or "residual_limit: 0.1")
    out = tmp_path / "out"
    code, _, errors = scapre("judge", MODEL, "--base", MODEL, *arguments, "--policy", str(rules), "--out", str(out))
    assert code in (ExitCode.BAD_INPUT, ExitCode.COULD_NOT_JUDGE)
    refusals = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    assert len(refusals) == 1
    assert said in refusals[0]
    assert not out.exists()
    assert not list((tmp_path / "home").rglob("*.png"))
