"""Bad input: one sentence, its exit code, and nothing changed."""

import errno
import shutil
from pathlib import Path

import pytest

from flows import cli
from flows.exit_codes import ExitCode

REFERENCE = Path(__file__).parents[2] / "infra" / "reference" / "model"
REQUEST = Path(__file__).parents[2] / "flows" / "demo_request.yaml"


@pytest.fixture
def scapre(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SCAPRE_HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> tuple[int, str]:
        code = cli.run(list(arguments))
        return code, capsys.readouterr().err.replace("\n", " ")

    return run


@pytest.fixture
def checkpoint(tmp_path):
    copy = tmp_path / "checkpoint"
    shutil.copytree(REFERENCE, copy)
    return copy


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_base_is_accepted_as_it_is(scapre, checkpoint):
    assert scapre("base", "add", "reference", str(checkpoint))[0] == ExitCode.OK


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("takedown", "run", "--base", "nowhere"), "nowhere"),
        (("takedown", "run", "--dial", "ridge"), "NAME=VALUE"),
        (("takedown", "run", "--policy", "no-such-file.yaml"), "no-such-file.yaml"),
        (("request", "show", "req-0"), "req-0"),
        (("request", "add", "no-such-file.yaml"), "no-such-file.yaml"),
        (("unlearn", "no-such-folder", "--concept", "cat", "--out", "out"), "no-such-folder"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(scapre, arguments, said):
    code, errors = scapre(*arguments)
    assert code in (ExitCode.BAD_INPUT, ExitCode.COULD_NOT_JUDGE)
    assert said in errors
    assert "Traceback" not in errors


def test_a_pickled_checkpoint_is_refused(scapre, checkpoint):
    weights = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    code, errors = scapre("base", "add", "reference", str(checkpoint))
    assert code == ExitCode.BAD_INPUT
    assert "safetensors" in errors
    assert "bases" not in str(files(checkpoint.parent / "home"))


def test_a_checkpoint_without_text_encoder_is_refused(scapre, checkpoint):
    shutil.rmtree(checkpoint / "text_encoder")
    code, errors = scapre("base", "add", "reference", str(checkpoint))
    assert code == ExitCode.BAD_INPUT
    assert "text encoder" in errors or "text_encoder" in errors


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--concept", "cat", "--retain", "cat"), "cat"),
        (("--concept", " "), "at least one visible character"),
        (("--concept", "cat", "--kind", "person"), "person"),
        (("--concept", "cat", "--method", "magic"), "magic"),
        (("--concept", "cat", "--dial", "strenght=1"), "strenght"),
        ((), "--concept"),
    ],
)
def test_the_engine_refuses_before_it_writes(scapre, checkpoint, tmp_path, options, said):
    code, errors = scapre("unlearn", str(checkpoint), *options, "--out", str(tmp_path / "out"))
    assert code == ExitCode.BAD_INPUT
    assert said in errors
    assert not (tmp_path / "out").exists()


def test_an_altered_base_is_refused_by_its_digest(scapre, checkpoint, tmp_path):
    assert scapre("base", "add", "reference", str(checkpoint))[0] == ExitCode.OK
    assert scapre("request", "add", str(REQUEST))[0] == ExitCode.OK
    blobs = (tmp_path / "home" / "objects" / "blobs").rglob("*")
    largest = max((path for path in blobs if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)
    code, errors = scapre("takedown", "run")
    assert code == ExitCode.BAD_INPUT
    assert "digest" in errors or "sha256" in errors.lower()
    assert not (tmp_path / "home" / "pictures").exists()


def test_a_file_that_is_there_already_is_not_overwritten(scapre, checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    code, errors = scapre("unlearn", str(checkpoint), "--concept", "cat", "--out", str(tmp_path / "out"))
    assert code == ExitCode.BAD_INPUT
    assert "exists" in errors


def test_a_policy_that_asks_by_an_unknown_pack_is_refused_before_anything_is_made(scapre, checkpoint, tmp_path):
    assert scapre("base", "add", "reference", str(checkpoint))[0] == ExitCode.OK
    assert scapre("request", "add", str(REQUEST))[0] == ExitCode.OK
    policy = tmp_path / "policy.yaml"
    policy.write_text("further_packs: {paraphrse: 32}")
    code, errors = scapre("takedown", "run", "--policy", str(policy))
    assert code == ExitCode.BAD_INPUT
    assert "found 'paraphrse'" in errors
    assert not (tmp_path / "home" / "pictures").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("write", ["scapre.edit.Edit.save", "infra.atomic.os.fsync"])
def test_a_full_disk_is_infrastructure_wherever_it_is_met(scapre, checkpoint, tmp_path, monkeypatch, number, write):
    def full(*_arguments, **_options):
        raise OSError(number, "No space left on device")

    arguments = (
        "unlearn",
        str(checkpoint),
        "--concept",
        "rose",
        "--dial",
        "vocabulary=0",
        "--out",
        str(tmp_path / "o"),
    )
    if write.startswith("infra"):
        arguments = ("base", "add", "reference", str(checkpoint))
    monkeypatch.setattr(write, full)
    code, errors = scapre(*arguments)
    assert code == ExitCode.INFRASTRUCTURE
    assert "Traceback" not in errors
