"""Manifests list exactly what is there."""

from pathlib import Path

import pytest

from infra.errors import DigestMismatchError, NotFoundError, PermanentFailure
from infra.manifests import Manifest

ENTRY = '{"bytes":1,"path":"PATH","sha256":"' + "a" * 64 + '"}'


def test_a_manifest_reads_back_to_the_same_bytes(folder: Path):
    manifest = Manifest.of_directory(folder)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert [entry.path for entry in manifest.entries] == sorted(entry.path for entry in manifest.entries)
    assert manifest.total_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_every_difference_is_listed(folder: Path):
    manifest = Manifest.of_directory(folder)
    (folder / "model_index.json").unlink()
    (folder / "vae" / "model.safetensors").write_bytes(b"w" * 5000)
    (folder / "extra").write_text("x")
    assert manifest.differences(folder) == [
        "extra: not in the manifest",
        "model_index.json: missing",
        "vae/model.safetensors: content differs from the manifest",
    ]
    with pytest.raises(DigestMismatchError, match="missing; vae"):
        manifest.require(folder)


def test_unfinished_files_are_not_part_of_a_directory(folder: Path):
    before = Manifest.of_directory(folder)
    (folder / ".model_index.json.0123.partial").write_text("half")
    assert Manifest.of_directory(folder) == before


@pytest.mark.parametrize("path", ["../escape", "/etc/passwd", "a/../../b", "a\\\\b", ""])
def test_a_path_that_leaves_the_directory_is_refused(path: str):
    content = '{"files":[' + ENTRY.replace("PATH", path) + '],"format":1}'
    with pytest.raises(PermanentFailure, match="path inside the directory"):
        Manifest.from_json(content.encode())


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"format":1,"files":[{}]}', b'{"format":2,"files":[]}', b"\xff"]
)
def test_what_is_no_manifest_is_refused(content: bytes):
    with pytest.raises(PermanentFailure, match="expected"):
        Manifest.from_json(content)


def test_a_linked_folder_is_refused(folder: Path, tmp_path: Path):
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(PermanentFailure, match="found the link"):
        Manifest.of_directory(folder)


def test_a_missing_directory_is_named(tmp_path: Path):
    with pytest.raises(NotFoundError, match="nowhere"):
        Manifest.of_directory(tmp_path / "nowhere")
