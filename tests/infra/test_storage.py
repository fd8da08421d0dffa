"""Both stores keep the same promises, against a folder and against an S3 server."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra import atomic, downloads
from infra.digests import sha256_bytes, sha256_file
from infra.errors import DigestMismatchError, NoSpaceError, NotFoundError, PermanentFailure, SettingsError
from infra.manifests import Manifest
from infra.s3 import S3Store
from infra.settings import load_settings
from infra.storage import LocalStore, ObjectStore, open_store

CREDENTIALS = {"access_key_id": "test-key", "secret_access_key": "test-secret", "region": "us-east-1"}


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return LocalStore(tmp_path / "objects")
    endpoint, bucket = request.getfixturevalue("s3_endpoint"), request.getfixturevalue("bucket")
    return S3Store(bucket, "some/prefix", endpoint=endpoint, first_wait_seconds=0.01, **CREDENTIALS)


def fetched_keys(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes which objects are really transferred, without changing how."""
    fetched: list[str] = []
    if isinstance(store, S3Store):
        store._client.meta.events.register(
            "before-call.s3.GetObject", lambda params, **_: fetched.append(params["url_path"].rsplit("/", 1)[-1])
        )
    else:
        original = LocalStore._existing
        monkeypatch.setattr(
            LocalStore, "_existing", lambda self, key: (fetched.append(key.rsplit("/", 1)[-1]), original(self, key))[1]
        )
    return fetched


def test_bytes_come_back_and_a_second_put_replaces_them(store: ObjectStore):
    assert store.put_bytes("a/b.json", b"one") == sha256_bytes(b"one")
    assert store.get_bytes("a/b.json", digest=sha256_bytes(b"one")) == b"one"
    store.put_bytes("a/b.json", b"two")
    assert store.get_bytes("a/b.json") == b"two"
    assert store.list_keys("a/") == ["a/b.json"]
    assert store.list_keys() == ["a/b.json"]
    assert store.list_keys("b") == []
    assert store.size_bytes("a/b.json") == 3
    assert store.exists("a/b.json")
    assert not store.exists("a/c.json")


def test_only_one_of_many_rivals_puts_if_absent(store: ObjectStore):
    barrier = threading.Barrier(6)

    def put(number: int) -> bool:
        barrier.wait()
        return store.put_if_absent("lock", str(number).encode())

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(put, range(6)))
    assert sum(won) == 1
    assert store.get_bytes("lock") == str(won.index(True)).encode()


def test_a_missing_object_is_named(store: ObjectStore, tmp_path: Path):
    for fetch in (lambda: store.get_bytes("gone"), lambda: store.get_file("gone", tmp_path / "x")):
        with pytest.raises(NotFoundError, match=f"{store.uri}/gone"):
            fetch()
    assert not (tmp_path / "x").exists()


def test_a_file_that_is_not_the_expected_one_never_appears(store: ObjectStore, tmp_path: Path):
    store.put_bytes("k", b"content")
    with pytest.raises(DigestMismatchError, match="expected SHA-256"):
        store.get_file("k", tmp_path / "x", digest=sha256_bytes(b"other"))
    assert list(tmp_path.glob("*x*")) == []


def test_a_directory_comes_back_whole_and_its_digest_is_that_of_its_manifest(
    store: ObjectStore, folder: Path, tmp_path: Path
):
    digest = store.put_directory("models/7", folder)
    assert digest == Manifest.of_directory(folder).digest == sha256_bytes(store.get_bytes("models/7/manifest.json"))
    assert store.exists("models/7")
    fetched = store.get_directory("models/7", tmp_path / "copy", digest=digest)
    assert Manifest.of_directory(fetched) == Manifest.of_directory(folder)
    assert store.key_of(store.locate("models/7")) == "models/7"


def test_files_that_two_directories_share_are_stored_once(store: ObjectStore, folder: Path):
    store.put_directory("base", folder)
    before = set(store.list_keys("blobs/"))
    (folder / "unet" / "model.safetensors").write_bytes(b"edited")
    store.put_directory("candidate", folder)
    assert len(set(store.list_keys("blobs/")) - before) == 1


def test_an_interrupted_fetch_resumes_and_a_truncated_file_is_fetched_again(
    store: ObjectStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    digest, copy = store.put_directory("m", folder), tmp_path / "copy"
    store.get_directory("m", copy)
    truncated = copy / "vae" / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:100])
    (copy / "model_index.json").unlink()
    fetched = fetched_keys(store, monkeypatch)
    store.get_directory("m", copy, digest=digest)
    lost = {sha256_file(folder / name) for name in ("vae/model.safetensors", "model_index.json")}
    assert sorted(fetched) == sorted({"manifest.json", *lost})
    Manifest.of_directory(folder).require(copy)


def test_a_directory_is_not_sent_again(store: ObjectStore, folder: Path, monkeypatch: pytest.MonkeyPatch):
    store.put_directory("m", folder)
    sent: list[str] = []
    original = type(store).put_file
    monkeypatch.setattr(
        type(store), "put_file", lambda self, key, path: (sent.append(key), original(self, key, path))[1]
    )
    store.put_directory("again", folder)
    assert sent == []


def test_a_folder_with_other_files_is_left_alone(store: ObjectStore, folder: Path, tmp_path: Path):
    store.put_directory("m", folder)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine.txt").write_text("mine")
    with pytest.raises(PermanentFailure, match=r"found also mine\.txt"):
        store.get_directory("m", tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["mine.txt"]


@pytest.mark.parametrize("key", ["", "/a", "a/../b", "../a", "a//b", "a/", ".hidden", "a\\b", "a\0b"])
def test_a_key_cannot_leave_the_store(store: ObjectStore, key: str):
    with pytest.raises(PermanentFailure, match="expected a key"):
        store.put_bytes(key, b"")


def test_a_uri_of_another_store_is_refused(store: ObjectStore):
    with pytest.raises(PermanentFailure, match="set SCAPRE_OBJECT_STORE_URI"):
        store.key_of("s3://elsewhere/models/7")


def test_a_full_disk_is_a_clear_permanent_failure(
    store: ObjectStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Writes go to /dev/full, since a small file system cannot be mounted everywhere: a real ENOSPC."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    store.put_directory("m", folder)
    store.put_bytes("k", b"x" * 100_000)
    original, write = os.open, os.pwrite
    full = original("/dev/full", os.O_RDWR)

    def open_full(path, flags: int, *rest: int) -> int:
        if not str(path).endswith(atomic.PARTIAL_SUFFIX):
            return original(path, flags, *rest)
        os.close(original(path, flags, *rest))
        return os.dup(full)

    if isinstance(store, LocalStore):
        monkeypatch.setattr(atomic.os, "open", open_full)
    else:
        monkeypatch.setattr(downloads.os, "pwrite", lambda _file, content, start: write(full, content, start))
    for fetch in (
        lambda: store.get_file("k", tmp_path / "out" / "k"),
        lambda: store.get_directory("m", tmp_path / "out"),
    ):
        with pytest.raises(NoSpaceError, match=r"disk or quota full; free some space"):
            fetch()
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    if isinstance(store, LocalStore):
        assert left == []
    assert all(path.name.startswith(".") for path in left)  # what a download goes on from is no file to read
    os.close(full)


def test_a_corrupted_blob_of_a_local_store_is_refused(folder: Path, tmp_path: Path):
    store = LocalStore(tmp_path / "objects")
    store.put_directory("m", folder)
    blob = max((tmp_path / "objects" / "blobs").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    blob.write_bytes(b"!" + blob.read_bytes()[1:])
    with pytest.raises(DigestMismatchError, match="store it again"):
        store.get_directory("m", tmp_path / "copy")
    assert not (tmp_path / "copy" / "unet" / "model.safetensors").exists()


def test_a_blob_that_was_cut_short_is_stored_again(folder: Path, tmp_path: Path):
    store = LocalStore(tmp_path / "objects")
    store.put_directory("m", folder)
    blob = next(path for path in (tmp_path / "objects" / "blobs").rglob("*") if path.is_file() and path.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1])
    store.put_directory("m", folder)
    store.get_directory("m", tmp_path / "copy")


@pytest.mark.parametrize(
    "uri", ["ftp://host/x", "gs://bucket", "file://", "file:///", "s3://", "/var/objects", "s3:bucket"]
)
def test_an_unknown_store_is_refused_by_name(uri: str):
    with pytest.raises(SettingsError, match=r"file:///folder or s3://bucket/prefix, found"):
        open_store(uri)


def test_a_uri_opens_the_store_it_names(tmp_path: Path, s3_endpoint: str):
    local = open_store((tmp_path / "with space").as_uri())
    local.put_bytes("k", b"1")
    assert (tmp_path / "with space" / "k").read_bytes() == b"1"
    settings = load_settings(
        home=tmp_path, s3_endpoint=s3_endpoint, s3_access_key_id="k", s3_secret_access_key="s", s3_region="us-east-1"
    )
    assert open_store("s3://bucket/some/prefix", settings=settings).uri == "s3://bucket/some/prefix"
