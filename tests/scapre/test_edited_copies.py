"""A copy begun before there is an edit: whole and edited in the end, or nothing, whatever happens in between."""

import errno
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_pipelines import build

import scapre
from scapre import CheckpointError, Concept, Edit, writing
from scapre.checkpoint.tensor_files import read_header

Copied = Callable[..., AbstractContextManager[Callable[[Edit], Path]]]
WAYS = {"folder": (scapre.merging, scapre.merge), "file": (scapre.rewriting, scapre.export_single_file)}


@pytest.fixture(params=sorted(WAYS))
def kind(request) -> str:
    return request.param


@pytest.fixture
def base(kind: str, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    build("stable-diffusion-1", dtype=torch.float32, width=64).save_pretrained(folder)
    if kind == "folder":
        return folder
    nothing = scapre.unlearn(folder, [])
    return scapre.export_single_file(nothing, folder, tmp_path / "base.safetensors")


@pytest.fixture
def given(kind: str, base: Path, tmp_path: Path) -> Path | scapre.SingleFile:
    return base if kind == "folder" else scapre.SingleFile(base, tmp_path / "base" / "tokenizer")


@pytest.fixture
def out(kind: str, tmp_path: Path) -> Path:
    return tmp_path / "new" / ("out" if kind == "folder" else "out.safetensors")


def unlearn(given: Path | scapre.SingleFile) -> Edit:
    return scapre.unlearn(given, [Concept("cat")], ["dog"], vocabulary=0)


def contents(place: Path) -> dict[str, bytes]:
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    return {str(file.relative_to(place)): file.read_bytes() for file in files}


def weights_of(base: Path) -> Path:
    return base / "unet" / "diffusion_pytorch_model.safetensors" if base.is_dir() else base


def test_an_edit_put_on_at_the_end_gives_the_bytes_of_one_known_before(kind, base, given, out) -> None:
    copied, export = WAYS[kind]
    with copied(given, out) as put_on:
        edit = unlearn(given)
        assert not out.exists()
        assert put_on(edit) == out
        assert not out.exists()  # the block may still fail
    assert contents(out) == contents(export(edit, given, out.with_name(f"again-{out.name}")))
    assert contents(out) != contents(base)


def test_it_is_copied_while_the_block_runs(kind, given, out, monkeypatch) -> None:
    own, begun, go_on = writing.copy_through, threading.Event(), threading.Event()

    def watched(*copy) -> None:
        begun.set()
        assert go_on.wait(30)
        own(*copy)

    edit = unlearn(given)
    monkeypatch.setattr(writing, "copy_through", watched)
    with WAYS[kind][0](given, out) as put_on:
        assert begun.wait(30)
        go_on.set()
        put_on(edit)
    assert scapre.base_digest(out) == edit.edited_digest


@pytest.mark.parametrize("error", [FileNotFoundError("a list of names"), KeyboardInterrupt(), ValueError("no")])
def test_a_block_that_fails_leaves_nothing_and_fails_as_it_did(kind, given, out, error: BaseException) -> None:
    def fail(edit: Edit) -> None:
        put_on(edit)
        raise error

    with pytest.raises(type(error)) as failed, WAYS[kind][0](given, out) as put_on:
        fail(unlearn(given))
    assert failed.value is error
    assert not out.parent.exists()


def test_edits_do_not_stack(kind, given, out) -> None:
    def put_twice(edit: Edit) -> None:
        put_on(edit)
        put_on(edit)

    with pytest.raises(CheckpointError, match="compute one edit of all"), WAYS[kind][0](given, out) as put_on:
        put_twice(unlearn(given))
    assert not out.parent.exists()


def test_without_an_edit_there_is_no_copy(kind, given, out) -> None:
    with pytest.raises(CheckpointError, match="expected an edit to put on"), WAYS[kind][0](given, out):
        pass
    assert not out.parent.exists()


def test_a_block_that_fails_gives_up_what_is_not_copied_yet(kind, base, given, out, monkeypatch) -> None:
    written = threading.Event()

    def slow(_: int) -> None:
        written.wait(0.01)

    monkeypatch.setattr(writing, "PIECE_BYTES", 64)
    monkeypatch.setattr(writing.os, "fdatasync", slow)
    assert 0.01 * weights_of(base).stat().st_size / 64 > 10  # seconds, if it were copied to the end
    done = []
    threading.Thread(target=lambda: (written.wait(10), done.append("late")), daemon=True).start()
    with pytest.raises(ZeroDivisionError), WAYS[kind][0](given, out):
        raise ZeroDivisionError
    assert not done
    written.set()
    assert not out.parent.exists()


def test_a_disk_that_is_full_is_told_when_the_edit_is_put_on(kind, given, out, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    edit = unlearn(given)
    monkeypatch.setattr(writing, "copy_through", full)
    with (
        pytest.raises(CheckpointError, match=r"could not write .*out.*No space left on device.*free space"),
        WAYS[kind][0](given, out) as put_on,
    ):
        put_on(edit)
    assert not out.parent.exists()


def test_refused_edits_leave_no_folders(kind, given, tmp_path, out) -> None:
    deep = out.parent / "a" / "b" / out.name
    with pytest.raises(CheckpointError, match="expected an edit"), WAYS[kind][0](given, deep):
        pass
    assert not out.parent.exists()
    out.parent.mkdir()
    (out.parent / "a").mkdir()
    with pytest.raises(CheckpointError, match="expected an edit"), WAYS[kind][0](given, deep):
        pass
    assert [place.name for place in out.parent.rglob("*")] == ["a"]  # what was there stays


def test_what_came_meanwhile_is_not_replaced(kind, given, out) -> None:
    def work(edit: Edit) -> None:
        if kind == "folder":
            out.mkdir()
            (out / "thesis.tex").write_text("years of work", encoding="utf-8")
        else:
            out.mkdir(parents=True)
        put_on(edit)

    with (
        pytest.raises(CheckpointError, match="holds something else" if kind == "folder" else "Is a directory"),
        WAYS[kind][0](given, out, overwrite=True) as put_on,
    ):
        work(unlearn(given))
    assert [place.name for place in out.parent.rglob("*")] == [out.name, *(["thesis.tex"] if kind == "folder" else [])]


@pytest.mark.parametrize("wrong", ["edit.safetensors", None])
def test_what_is_no_edit_is_refused(kind, given, out, wrong) -> None:
    with pytest.raises(CheckpointError, match=r"found \w+; scapre\.Edit\.load"), WAYS[kind][0](given, out) as put_on:
        put_on(wrong)


def test_what_is_no_place_is_refused(kind, out) -> None:
    with pytest.raises(CheckpointError, match=r"found StableDiffusionPipeline; edit\.apply"):
        WAYS[kind][1](None, build("stable-diffusion-1"), out)


def test_a_folder_is_not_rewritten(tmp_path: Path) -> None:
    build("stable-diffusion-1").save_pretrained(tmp_path / "base")
    with (
        pytest.raises(CheckpointError, match=r"expected a single file, found the folder .*scapre\.merging"),
        scapre.rewriting(tmp_path / "base", tmp_path / "out.safetensors"),
    ):
        pass


@pytest.mark.parametrize("odd", ["pipe", "link"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, odd: str) -> None:
    base = tmp_path / "base"
    build("stable-diffusion-1").save_pretrained(base)
    os.mkfifo(base / "odd") if odd == "pipe" else (base / "odd").symlink_to(tmp_path / "gone")
    with (
        pytest.raises(CheckpointError, match=r"found .*odd, which is neither, or a link that leads nowhere"),
        scapre.merging(base, tmp_path / "new" / "out"),
    ):
        pass
    assert [place.name for place in tmp_path.iterdir()] == ["base"]


def _cut(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes()[: copy.stat().st_size // 2])


def _empty(copy: Path) -> None:
    copy.write_bytes(b"")


def _other_tensors(copy: Path) -> None:
    save_file({"other": torch.zeros(1)}, copy)


def _nothing(copy: Path) -> None:
    pass


@pytest.mark.parametrize("damage", [_cut, _empty, _other_tensors, _nothing])
@pytest.mark.parametrize("concepts", [["cat"], []], ids=["an edit", "one of nothing"])
def test_a_copy_of_a_file_half_written_is_refused(kind, base, given, out, monkeypatch, damage, concepts) -> None:
    own, file = writing.copy_through, weights_of(base)
    edit = scapre.unlearn(given, concepts, vocabulary=0)

    def damaged(source: Path, target: Path, *rest) -> None:
        own(source, target, *rest)
        if source.samefile(file):
            damage(target)

    monkeypatch.setattr(writing, "copy_through", damaged)
    refusal = (
        nullcontext() if damage is _nothing else pytest.raises(CheckpointError, match="it was written to meanwhile")
    )
    with refusal, WAYS[kind][0](given, out) as put_on:
        put_on(edit)
    assert out.exists() == (damage is _nothing)


@pytest.mark.parametrize("is_changed", [True, False])
def test_a_checkpoint_written_to_while_it_was_copied_is_refused(
    kind, base, given, out, monkeypatch, is_changed: bool
) -> None:
    own, file, edit, is_copied = writing.copy_through, weights_of(base), unlearn(given), threading.Event()
    entries = read_header(file)
    start = next(entries[name].start for name in sorted(entries) if name.endswith("attn2.to_k.weight"))

    def flip() -> None:
        with file.open("r+b") as opened:
            opened.seek(start)
            byte = opened.read(1)[0] ^ 1
            opened.seek(start)
            opened.write(bytes([byte]))

    def copy_of_other_numbers(source: Path, *rest) -> None:
        is_it = source.samefile(file)
        if is_it and is_changed:
            flip()
        own(source, *rest)
        if is_it and is_changed:
            flip()  # whoever looks at the original later finds what it was
        if is_it:
            is_copied.set()

    monkeypatch.setattr(writing, "copy_through", copy_of_other_numbers)
    refusal = pytest.raises(CheckpointError, match="it was written to meanwhile")
    with refusal if is_changed else nullcontext(), WAYS[kind][0](given, out) as put_on:
        assert is_copied.wait(30)
        put_on(edit)
    assert out.exists() != is_changed
