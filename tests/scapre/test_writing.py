"""Copies are whole and on the disk, or there is an error."""

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from scapre import writing
from scapre.errors import CheckpointError
from scapre.writing import copy_through


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(100_000))
    return source


@pytest.mark.parametrize("size", [0, 1, 64, 65, 1000])
def test_a_copy_is_the_same_whatever_the_pieces(tmp_path: Path, monkeypatch, size: int) -> None:
    monkeypatch.setattr(writing, "PIECE_BYTES", 64)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    copy_through(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_what_was_longer_before_is_cut(source: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(bytes(200_000))
    copy_through(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("is_known", [True, False])
def test_a_system_that_cannot_copies_first_and_writes_then(source: Path, tmp_path: Path, monkeypatch, is_known) -> None:
    flushed = []

    def only_to_sockets(*_: object) -> int:
        raise OSError(errno.ENOTSOCK, "not a socket")

    monkeypatch.setattr(os, "sendfile", only_to_sockets)
    if not is_known:
        monkeypatch.delattr(os, "sendfile")
    monkeypatch.setattr(writing, "flush", flushed.append)
    copy_through(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert flushed == [tmp_path / "copy"]


def test_a_disk_that_fails_later_is_an_error(source: Path, tmp_path: Path, monkeypatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writing.os, "fdatasync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        copy_through(source, tmp_path / "copy")


@pytest.mark.parametrize("is_written_to", [True, False])
def test_a_source_that_is_written_to_meanwhile_is_an_error(source: Path, tmp_path: Path, monkeypatch, is_written_to):
    own = writing.flush

    def touched(target: Path) -> None:
        own(target)
        if is_written_to:
            os.utime(source, ns=(0, 0))

    monkeypatch.setattr(writing, "flush", touched)
    refusal = pytest.raises(CheckpointError, match="found it written to") if is_written_to else nullcontext()
    with refusal:
        copy_through(source, tmp_path / "copy")


@pytest.mark.parametrize("is_known", [True, False])
def test_a_copy_that_is_given_up_ends(source: Path, tmp_path: Path, monkeypatch, is_known: bool) -> None:
    given_up = threading.Event()
    given_up.set()
    if not is_known:
        monkeypatch.delattr(os, "sendfile")
    copy_through(source, tmp_path / "copy", given_up)
    assert not (tmp_path / "copy").read_bytes()


def test_who_comes_second_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    target, own = tmp_path / "out", Path.rename
    target.mkdir()

    def taken(place: Path, new: Path) -> Path:
        if place == target:
            own(target, tmp_path / "elsewhere")  # somebody else has begun to replace it
        return own(place, new)

    monkeypatch.setattr(Path, "rename", taken)
    with pytest.raises(CheckpointError, match="could not write"), writing.new_folder(target, overwrite=True):
        pass
    assert [place.name for place in tmp_path.iterdir()] == ["elsewhere"]


def test_a_source_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        copy_through(tmp_path / "none", tmp_path / "copy")


def test_a_link_that_leads_nowhere_is_not_replaced(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"found .*link there already"), writing.new_file(link, overwrite=False):
        pass
    assert link.is_symlink()


@pytest.mark.parametrize("new", [writing.new_file, writing.new_folder])
def test_a_name_that_no_disk_takes_is_refused(tmp_path: Path, new) -> None:
    with (
        pytest.raises(CheckpointError, match=r"could not write .*choose another place"),
        new(tmp_path / ("n" * 300), overwrite=True),
    ):
        pass
    with new(tmp_path / ("n" * 30), overwrite=True):  # the control
        pass


@pytest.fixture(params=[0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_link_to_itself_is_replaced(tmp_path: Path) -> None:
    (loop := tmp_path / "loop").symlink_to(loop)
    with writing.new_file(loop, overwrite=True) as building:
        building.write_bytes(b"1")
    assert loop.read_bytes() == b"1"


def test_what_is_written_has_the_permissions_that_the_caller_gives(tmp_path: Path, umask: int) -> None:
    with writing.new_file(tmp_path / "file", overwrite=False) as building:
        building.write_bytes(b"1")
    with writing.new_folder(tmp_path / "folder", overwrite=False) as building:
        (building / "inside").touch()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask
