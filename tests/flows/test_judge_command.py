"""`scapre judge` on files as other tools leave them: a verdict for machines, and refusals before any picture."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml
from safetensors.torch import save_file

import scapre as engine
from flows import cli
from flows.commands.judge import why_it_cannot_pass
from flows.exit_codes import ExitCode
from flows.takedown import DEFAULT_POLICY
from validation import load_policy
from validation.evidence import verify_evidence
from validation.probes import Subject

MODEL = Path(__file__).parents[2] / "infra" / "reference" / "model"
POLICY = {  # limits that few pictures can show
    "residual_limit": 0.5,
    "retained_margin": 0.5,
    "retained_concept_margin": 0.5,
    "probes_per_target": 8,
    "probes_per_target_base": 2,
    "probes_per_retained": 2,
    "probes_per_hidden": 0,
    "probes_per_style": 1,
}


@pytest.fixture
def scapre(tmp_path: Path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("SCAPRE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(POLICY), encoding="utf-8")

    def run(checkpoint: Path, *options: str) -> tuple[int, str, str]:
        named = ["--target", "rose", "--retain", "tulip", "--retain", "house", "--retain", "cat"]
        fixed = ["--base", str(MODEL), "--policy", str(tmp_path / "policy.yaml"), "--out", str(tmp_path / "out")]
        code = cli.run(["judge", str(checkpoint), *fixed, *named, *options])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_an_edit_is_judged_without_keeping_a_picture_and_machines_can_read_the_answer(scapre, tmp_path) -> None:
    edit = engine.unlearn(MODEL, [engine.Concept("rose", anchor="house")], retain=["tulip", "cat"], vocabulary=0)
    edit.save(tmp_path / "edit.safetensors")
    files = ["--json", str(tmp_path / "judged.json"), "--junit", str(tmp_path / "judged.xml"), "--no-images"]
    code, said, _ = scapre(tmp_path / "edit.safetensors", *files)
    found = json.loads((tmp_path / "judged.json").read_text(encoding="utf-8"))
    assert code == found["exit_code"]
    assert f"verdict     {found['verdict']}" in said
    integrity = next(gate for gate in found["gates"] if gate["gate"] == "integrity")
    assert "weights are the base's with the edit on" in integrity["reason"]
    cases = ElementTree.parse(tmp_path / "judged.xml").getroot().findall("testsuite/testcase")
    assert [cases[-1].get("classname"), cases[-1].get("name")] == ["verdict", found["verdict"]]
    assert verify_evidence(tmp_path / "out") == []
    assert json.loads((tmp_path / "out" / "checkpoint.json").read_text())["kind"] == "edit"
    assert "data:image/" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8").replace(
        "data:image/svg", ""
    )
    assert not list(tmp_path.rglob("*.png"))
    assert not list((tmp_path / "scratch").glob("scapre-pictures-*"))


def without_vae(folder: Path) -> Path:
    shutil.rmtree(folder / "vae")
    return folder


def cut_short(folder: Path) -> Path:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])
    return folder


def pickled(folder: Path) -> Path:
    torch.save({}, folder / "unet" / "weights.ckpt")
    return folder


def foreign_lora(folder: Path) -> Path:
    stem = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"{stem}.lora_A.weight": torch.ones(2, 2048), f"{stem}.lora_B.weight": torch.ones(1280, 2)}
    save_file(tensors, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def nothing(folder: Path) -> Path:
    return folder / "nowhere"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (without_vae, "expected the component vae"),
        (cut_short, "expected a readable safetensors file"),
        (pickled, "found the pickle"),
        (foreign_lora, "LoRA"),
        (nothing, "found nothing"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line_before_any_picture(scapre, tmp_path, broken, said) -> None:
    checkpoint = broken(Path(shutil.copytree(MODEL, tmp_path / "copy")))
    code, _, errors = scapre(checkpoint)
    assert code == ExitCode.BAD_INPUT
    assert said in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.png"))


def test_too_few_retained_concepts_to_pass_are_told_beforehand() -> None:
    policy = load_policy(DEFAULT_POLICY)  # 59 pairs at 8 for each concept
    objects = [Subject(f"object {number}") for number in range(8)]
    styles = [Subject(f"style {number}", kind="style") for number in range(8)]
    assert why_it_cannot_pass(objects, policy) == []
    assert why_it_cannot_pass([*objects, *styles], policy) == []
    assert why_it_cannot_pass(styles, policy) == []
    [said] = why_it_cannot_pass(objects[:7], policy)
    assert "7 retained concepts in 8 pairs" in said
    assert "name 8 or more" in said
    [said] = why_it_cannot_pass([*objects, *styles[:1]], policy)
    assert "1 retained styles" in said
    assert "probes_per_style" in said
    assert len(why_it_cannot_pass([*objects[:1], *styles[:1]], policy)) == 2
    [said] = why_it_cannot_pass([], policy)
    assert "0 retained concepts" in said
    many = policy.model_copy(update={"probes_per_retained": 100})
    assert "name 2 or more" in why_it_cannot_pass(objects[:1], many)[0]  # one shows nothing about the others


def test_what_is_to_be_gone_and_to_survive_is_refused(scapre, tmp_path: Path) -> None:
    code, _, said = scapre(MODEL, "--retain", "Rose")
    assert code == ExitCode.BAD_INPUT
    assert "found rose as both" in said
    assert not (tmp_path / "out").exists()
