"""`scapre unlearn` and `scapre export` on the reference model: what is written, what is refused."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest

import scapre
from flows.cli import run
from flows.commands.export import warn_of_no_loader
from flows.exit_codes import ExitCode

MODEL = "infra/reference/model"
QUICK = ["--dial", "vocabulary=0"]


@pytest.fixture(autouse=True, scope="module")
def _home(tmp_path_factory: pytest.TempPathFactory, _environment_put_back_after_module: None) -> None:
    os.environ["SCAPRE_HOME"] = str(tmp_path_factory.mktemp("home"))  # not the one of whoever runs the tests


@pytest.fixture(scope="module")
def edit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edit of two concepts, and the edited checkpoint beside it."""
    out = tmp_path_factory.mktemp("unlearned") / "out"
    concepts = [
        "--concept",
        "tiger",
        "--concept",
        "violin",
        "--retain",
        "lion",
        "--dial",
        "vocabulary=0",
        "--dial",
        "rank=3",
    ]
    assert run(["unlearn", MODEL, *concepts, "--out", str(out)]) == ExitCode.OK
    assert scapre.base_digest(out / "checkpoint") == scapre.Edit.load(out / "edit.safetensors").edited_digest
    return out / "edit.safetensors"


def test_single_file_goes_out_and_comes_in_again(edit: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "model.safetensors"
    assert run(["export", str(edit), MODEL, "--as", "single-file", "--out", str(file)]) == ExitCode.OK
    assert f"wrote {file}" in capsys.readouterr().out.replace("\n", "")
    assert scapre.base_digest(file) == scapre.Edit.load(edit).edited_digest
    again = ["unlearn", str(file), "--concept", "guitar", "--out", str(tmp_path / "again"), "--dial", "vocabulary=0"]
    assert run(again) == ExitCode.BAD_INPUT
    assert "put the folder `tokenizer`" in capsys.readouterr().err.replace("\n", " ")


def test_lora_says_how_much_it_loses_and_which_rank_would_do(edit: Path, tmp_path: Path, capsys) -> None:
    file = str(tmp_path / "lora.safetensors")
    assert run(["export", str(edit), MODEL, "--as", "lora", "--rank", "1", "--out", file]) == ExitCode.OK
    first = capsys.readouterr()
    assert "all together" in first.out
    needed = int(first.err.split("--rank ")[1].split()[0])
    assert 2 <= needed <= 6  # two concepts in three directions each
    assert run(["export", str(edit), MODEL, "--as", "lora", "--rank", str(needed), "--out", file, "--force"]) == 0
    assert capsys.readouterr().err == ""


def test_folder_is_the_checkpoint_unlearn_wrote(edit: Path, tmp_path: Path) -> None:
    assert run(["export", str(edit), MODEL, "--out", str(tmp_path / "out")]) == ExitCode.OK
    written = {p.relative_to(tmp_path / "out"): p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert all((edit.parent / "checkpoint" / name).read_bytes() == p.read_bytes() for name, p in written.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--as", "lora", "--out", "x.safetensors"], "give --rank"),
        (["--as", "single-file", "--rank", "4", "--out", "x.safetensors"], "expected no rank"),
        (["--as", "single-file", "--out", "x.ckpt"], "ends in .safetensors"),
        (["--as", "lora", "--rank", "999", "--out", "x.safetensors"], "at most 80, found 999"),
        (["--out", "taken"], "replace it by --force"),
        (["--as", "gguf", "--out", "x"], "is not one of"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(
    edit: Path, tmp_path: Path, capsys, options: list[str], message: str
) -> None:
    (tmp_path / "taken").mkdir()
    placed = [*options[:-1], str(tmp_path / options[-1])]
    assert run(["export", str(edit), MODEL, *placed]) == ExitCode.BAD_INPUT
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_an_edit_goes_onto_its_own_base_only(edit: Path, tmp_path: Path, capsys) -> None:
    edited = str(edit.parent / "checkpoint")
    assert run(["export", str(edit), edited, "--out", str(tmp_path / "out")]) == ExitCode.BAD_INPUT
    loaded, said = scapre.Edit.load(edit), capsys.readouterr().err
    assert loaded.base_digest in said
    assert loaded.edited_digest in said


def test_help_teaches_what_each_form_is_for(capsys) -> None:
    assert run(["export", "--help"]) == ExitCode.OK
    said = capsys.readouterr().out
    assert all(word in said for word in ("folder", "single-file", "lora", "--rank", "--force", "Example"))


def said_by(capsys, *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments))
    said = capsys.readouterr()
    return code, " ".join(said.out.split()), " ".join(said.err.split())


def test_unlearn_says_what_became_of_each_concept_and_takes_aliases_and_anchors(tmp_path: Path, capsys) -> None:
    named = ["--concept", "tiger", "--concept", "violin", "--alias", "Tigers=tigre", "--retain", "lion"]
    out = str(tmp_path / "out")
    named += ["--anchor", "violin=", "--kind", "identity", "--kind", "Violin=style"]
    code, said, _ = said_by(capsys, "unlearn", MODEL, *named, "--out", out, *QUICK)
    assert code == ExitCode.OK
    assert "answer left" in said
    edit = scapre.Edit.load(tmp_path / "out" / "edit.safetensors")
    assert edit.spec.concepts == (
        scapre.Concept("tiger", "identity", ("tigre",)),
        scapre.Concept("violin", "style", anchor=""),
    )
    left = edit.diagnostics["residual_response"]
    assert f"tiger │ lion │ {left['tiger']:.0%}" in said
    assert f"violin │ nothing in particular (the empty prompt) │ {left['violin']:.0%}" in said


@pytest.mark.parametrize("end", [["--dry-run"], ["--out"]])
def test_how_much_text_is_read_is_told_once_it_takes_long(tmp_path: Path, capsys, monkeypatch, end: list[str]) -> None:
    end = [*end, str(tmp_path / "out")] if end == ["--out"] else end
    for target, kept, seconds, is_told in (("tiger", "lion", 1e9, False), ("violin", "guitar", 0.0, True)):
        monkeypatch.setattr("flows.commands.engine.QUIET_SECONDS", seconds)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert run(["unlearn", MODEL, "--concept", target, "--retain", kept, *QUICK, *end]) == ExitCode.OK
        assert ("reading text: " in capsys.readouterr().err) is is_told


def test_a_dry_run_needs_no_place_and_names_the_synonyms_left_out(capsys) -> None:
    dry = ["unlearn", MODEL, "--concept", "tiger", "--dry-run"]
    code, said, warned = said_by(capsys, *dry, "--dial", "synonym_cosine=0.4")
    assert code == ExitCode.OK
    assert "taken for the concepts themselves, so not retained: " in said
    assert "nobody vouches that the model draws it" in warned
    code, said, warned = said_by(capsys, *dry, "--retain", "dog")
    assert code == ExitCode.OK
    assert "taken for" not in said  # the control: nothing lies that near
    assert "vouches" not in warned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected a new folder to write to, found none; give --out DIR, or --dry-run"),
        (["--alias", "tigre"], "expected alias as CONCEPT=ALIAS"),
        (["--anchor", "lion=cat"], "CONCEPT one of those to forget, found 'lion=cat'"),
        (["--anchor", "tiger=cat", "--anchor", "tiger=dog"], "found 'cat' and 'dog'; keep one"),
        (["--kind", "style", "--kind", "unsafe"], "expected one kind for each concept, found 'style' and 'unsafe'"),
        (["--kind", ""], "expected a kind among object, style, identity, unsafe, found ''"),
        (["--kind", "lion=style"], "expected kind as CONCEPT=KIND, CONCEPT one of those to forget, found 'lion=style'"),
        (["--out", "/proc/nowhere/out"], "expected a place that can be written to, found /proc/nowhere/out"),
        (["--dry"], "see `scapre unlearn --help`"),
        (["--dry-run", "--dial", "on_progress=1"], "method scapre has no dial on_progress"),
    ],
)
def test_what_unlearn_cannot_act_on_is_refused(capsys, options: list[str], message: str) -> None:
    code, _, warned = said_by(capsys, "unlearn", MODEL, "--concept", "tiger", *options)
    assert code == ExitCode.BAD_INPUT
    assert message in warned


def test_a_dry_run_says_why_each_concept_becomes_what_it_becomes(capsys) -> None:
    named = ["--concept", "tiger", "--concept", "violin", "--concept", "a, b", "--retain", "lion"]
    code, said, warned = said_by(capsys, "unlearn", MODEL, *named, "--anchor", "violin=drum", "--dry-run", *QUICK)
    assert code == ExitCode.OK
    assert "tiger │ lion │ nearest name to retain" in said
    assert "violin │ drum │ the anchor given" in said
    assert "warning: 'a, b': one name, comma and all" in warned
    default = ["--concept", "tiger", "--dial", "anchor=", "--dry-run"]
    code, said, warned = said_by(capsys, "unlearn", MODEL, *default, *QUICK)
    assert "(the empty prompt) │ the default" in said
    assert "comma" not in warned


def test_lists_of_names_may_be_indented_commented_and_marked_as_unicode(tmp_path: Path, capsys) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes(b"\xef\xbb\xbflion\r\n  # great cats\n\n  leopard  \n")
    given = ["unlearn", MODEL, "--concept", "tiger", "--retain-file", str(names), *QUICK, "--dry-run"]
    assert run(given) == ExitCode.OK
    assert "2 named" in (told := capsys.readouterr().out)
    assert "great cats" not in told


@pytest.mark.parametrize(
    ("options", "place", "message"),
    [
        (["--concept", "tiger"], "model/new/out", "outside of the checkpoint, found .*model/new/out;"),
        (["--concept", "<|endoftext|>"], "a/b/out", "words that the tokenizers know"),
        (["--concept", "tiger"], "link", "expected a new folder, found .*link, which exists"),
    ],
)
def test_unlearn_that_is_refused_leaves_no_folder_behind(tmp_path: Path, capsys, options, place, message) -> None:
    model = shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    before = sorted(tmp_path.rglob("*"))
    assert run(["unlearn", str(model), *options, *QUICK, "--out", str(tmp_path / place)]) == ExitCode.BAD_INPUT
    assert re.search(message, capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_told_with_the_place_that_was_given(tmp_path: Path, capsys, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("scapre.writing.copy_through", full)
    out = tmp_path / "new" / "out"
    assert run(["unlearn", MODEL, "--concept", "tiger", *QUICK, "--out", str(out)]) == ExitCode.INFRASTRUCTURE
    assert f"could not write {out}/checkpoint: [Errno 28]" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_an_interrupted_command_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scapre, "unlearn", interrupted, raising=False)
    out = str(tmp_path / "out")
    assert run(["unlearn", MODEL, "--concept", "tiger", *QUICK, "--out", out]) == ExitCode.INTERRUPTED
    assert "scapre: interrupted; run the same command again" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_dials_are_explained(capsys) -> None:
    code, said, _ = said_by(capsys, "dials", "uce")
    assert code == ExitCode.OK
    assert "erasure_strength" in said
    assert "speed, uce" in said
    code, _, warned = said_by(capsys, "dials", "magic")
    assert code == ExitCode.BAD_INPUT
    assert "magic" in warned


def test_a_folder_given_as_an_edit_is_told_apart(tmp_path: Path, capsys) -> None:
    code, _, warned = said_by(capsys, "export", MODEL, MODEL, "--out", str(tmp_path / "out"))
    assert code == ExitCode.BAD_INPUT
    assert "found the folder" in warned


def test_a_base_that_could_not_be_merged_is_refused_before_anything_is_solved(tmp_path: Path, capsys) -> None:
    base = tmp_path / "base"
    shutil.copytree(MODEL, base)
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copyfile(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    for arguments in (
        ["unlearn", str(base), "--concept", "tiger", "--dry-run"],
        ["base", "add", "twice", str(base)],
    ):
        code, _, warned = said_by(capsys, *arguments)
        assert code == ExitCode.BAD_INPUT
        assert "found unet/diffusion_pytorch_model.fp16.safetensors as well" in warned
    code, _, warned = said_by(capsys, "base", "add", "file", str(weights))
    assert code == ExitCode.BAD_INPUT


@pytest.mark.parametrize("name", ["tiger [/b]", "tiger [red]", "tiger :cat:"])
def test_a_name_is_shown_as_it_was_given(tmp_path: Path, capsys, name: str) -> None:
    named = ["unlearn", MODEL, "--concept", name, "--retain", "lion", "--dial", "vocabulary=0"]
    for options in (["--dry-run"], ["--out", str(tmp_path / "out")]):
        code, said, _ = said_by(capsys, *named, *options)
        assert code == ExitCode.OK
        assert name in said


def test_names_and_what_is_said_of_them_may_hold_equals_signs(capsys) -> None:
    names = ["--concept", "a=b", "--concept", "tiger", "--retain", "lion"]
    of_them = ["--kind", "a=b=style", "--kind", "a=b=style", "--anchor", "tiger=x=y"]
    code, said, _ = said_by(capsys, "unlearn", MODEL, *names, *of_them, "--dry-run", *QUICK)
    assert code == ExitCode.OK
    assert "a=b │ a photo │ the default" in said
    assert "tiger │ x=y │ the anchor given" in said


@pytest.mark.parametrize(("pipeline_class", "is_warned"), [("PixArtSigmaPipeline", True), ("SanaPipeline", False)])
def test_a_lora_that_no_pipeline_loads_is_warned_of(capsys, pipeline_class: str, is_warned: bool) -> None:
    warn_of_no_loader(pipeline_class)
    assert ("loads no LoRA" in capsys.readouterr().err) is is_warned
