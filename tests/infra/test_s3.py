"""What only S3 can do wrong: cut streams, busy servers, corrupted objects, refused requests."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.digests import sha256_bytes, sha256_file
from infra.errors import DigestMismatchError, NotFoundError, PermanentFailure, TransientFailure
from infra.manifests import Manifest
from infra.s3 import S3Store
from tests.chaos.proxy import Fault, FaultyProxy

CREDENTIALS = {"access_key_id": "test-key", "secret_access_key": "test-secret", "region": "us-east-1"}
PART_BYTES = 5 << 20


@pytest.fixture
def store(s3_endpoint: str, bucket: str) -> S3Store:
    return S3Store(bucket, endpoint=s3_endpoint, part_bytes=PART_BYTES, first_wait_seconds=0.01, **CREDENTIALS)


class Flaky(http.server.BaseHTTPRequestHandler):
    """Answers the first requests wrongly, then correctly."""

    faults: list[str]
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.command)
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.send_header("ETag", '"e"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"x" * (100 if fault == "cut" else 1000))
        self.close_connection = True

    do_HEAD = do_GET  # noqa: N815  the name that http.server calls

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def flaky() -> Iterator[tuple[str, type[Flaky]]]:
    handler = type("Handler", (Flaky,), {"faults": [], "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


def flaky_store(endpoint: str, attempts: int) -> S3Store:
    return S3Store("bucket", endpoint=endpoint, attempts=attempts, first_wait_seconds=0.01, **CREDENTIALS)


def test_a_large_file_travels_in_parts_and_comes_back(store: S3Store, s3_client, tmp_path: Path):
    source = tmp_path / "large"
    source.write_bytes(bytes(range(256)) * (2 * PART_BYTES // 256) + b"tail")
    digest = store.put_file("large", source)
    head = s3_client.head_object(Bucket=store.bucket, Key="large")
    assert head["ETag"].strip('"').endswith("-3")
    assert head["Metadata"]["sha256"] == digest
    assert sha256_file(store.get_file("large", tmp_path / "copy", digest=digest)) == digest


def test_an_object_altered_on_the_server_is_refused_even_without_a_known_digest(
    store: S3Store, s3_client, tmp_path: Path
):
    digest = store.put_bytes("k", b"content")
    s3_client.put_object(Bucket=store.bucket, Key="k", Body=b"altered", Metadata={"sha256": digest})
    with pytest.raises(DigestMismatchError, match="altered or cut short"):
        store.get_bytes("k")
    with pytest.raises(DigestMismatchError):
        store.get_file("k", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_corrupted_file_of_a_directory_is_refused(store: S3Store, s3_client, folder: Path, tmp_path: Path):
    store.put_directory("m", folder)
    digest = sha256_file(folder / "unet" / "model.safetensors")
    key = f"blobs/sha256/{digest[:2]}/{digest}"
    s3_client.put_object(Bucket=store.bucket, Key=key, Body=b"!" * 10240)
    with pytest.raises(DigestMismatchError, match=digest):
        store.get_directory("m", tmp_path / "copy")
    assert not (tmp_path / "copy" / "unet" / "model.safetensors").exists()


def test_a_stored_file_that_arrives_corrupted_is_one_of_the_differences(s3_endpoint: str, bucket: str, folder: Path):
    with FaultyProxy(s3_endpoint) as proxy:
        store = S3Store(bucket, endpoint=proxy.url, first_wait_seconds=0.01, **CREDENTIALS)
        digest = store.put_directory("m", folder)
        assert store.differences("m", digest=digest) == []
        proxy.faults = [Fault("flip", "GET .*/blobs/", times=1)]
        (difference,) = store.differences("m", digest=digest)
    assert proxy.faults[0].met == 1
    assert difference.startswith("model_index.json: ")


def test_an_altered_manifest_is_refused(store: S3Store, s3_client, folder: Path, tmp_path: Path):
    digest = store.put_directory("m", folder)
    s3_client.put_object(Bucket=store.bucket, Key="m/manifest.json", Body=b'{"files":[],"format":1}')
    with pytest.raises(DigestMismatchError, match=digest):
        store.get_directory("m", tmp_path / "copy", digest=digest)


def test_a_missing_bucket_is_permanent_and_named(s3_endpoint: str):
    store = S3Store("no-such-bucket", endpoint=s3_endpoint, first_wait_seconds=0.01, **CREDENTIALS)
    with pytest.raises(PermanentFailure, match="check bucket, credentials") as caught:
        store.put_bytes("k", b"")
    assert not isinstance(caught.value, NotFoundError)


@pytest.mark.parametrize("fault", ["cut", "503"])
def test_a_cut_stream_and_a_busy_server_are_tried_again(
    flaky: tuple[str, type[Flaky]], fault: str, monkeypatch: pytest.MonkeyPatch
):
    endpoint, handler = flaky
    handler.faults[:] = [fault]
    assert flaky_store(endpoint, 3).get_bytes("k", digest=sha256_bytes(b"x" * 1000)) == b"x" * 1000
    assert handler.requests == ["GET", "GET"]


def test_a_file_whose_stream_is_cut_is_fetched_again(flaky: tuple[str, type[Flaky]], tmp_path: Path):
    endpoint, handler = flaky
    handler.faults[:] = ["", "cut"]
    copy = flaky_store(endpoint, 3).get_file("k", tmp_path / "copy", digest=sha256_bytes(b"x" * 1000))
    assert copy.stat().st_size == 1000


def test_a_stream_that_is_always_cut_is_transient_after_a_bounded_number_of_attempts(flaky: tuple[str, type[Flaky]]):
    endpoint, handler = flaky
    handler.faults[:] = ["cut"] * 100
    with pytest.raises(TransientFailure, match="try again"):
        flaky_store(endpoint, 2).get_bytes("k")
    assert len(handler.requests) == 2


def test_wrong_content_is_not_tried_again(flaky: tuple[str, type[Flaky]]):
    endpoint, handler = flaky
    with pytest.raises(DigestMismatchError):
        flaky_store(endpoint, 5).get_bytes("k", digest=sha256_bytes(b"something else"))
    assert len(handler.requests) == 1


def test_a_server_that_is_not_there_is_transient():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TransientFailure, match="expected an answer from the store"):
        flaky_store(f"http://127.0.0.1:{port}", 1).get_bytes("k")


class Faulty(http.server.BaseHTTPRequestHandler):
    """An object served in ranges, with a fault for each request by its number."""

    content: bytes
    faults: dict[int, str]
    requests: list[str]
    etag = '"one"'

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("ETag", self.etag)
        self.end_headers()

    def do_GET(self) -> None:
        self.requests.append(self.headers["Range"])
        fault = self.faults.get(len(self.requests), "")
        first, last = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
        body = self.content[first : last + 1]
        if fault == "slow":
            time.sleep(1.5)
        if fault == "changed":
            type(self).content, type(self).etag = bytes(reversed(self.content)), '"two"'
        if fault == "500" or self.headers["If-Match"] != self.etag:
            self.send_response(500 if fault == "500" else 412)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.etag)
        self.end_headers()
        if fault == "corrupt":
            body = b"!" + body[1:]
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


CONTENT = bytes(range(250)) * 40
PARTS = 10


@pytest.fixture
def faulty() -> Iterator[tuple[str, type[Faulty]]]:
    handler = type("Handler", (Faulty,), {"content": CONTENT, "faults": {}, "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


def ranged(endpoint: str, *, attempts: int) -> S3Store:
    return S3Store(
        "bucket",
        endpoint=endpoint,
        attempts=attempts,
        first_wait_seconds=0.01,
        timeout_seconds=0.5,
        part_bytes=len(CONTENT) // PARTS,
        **CREDENTIALS,
    )


@pytest.mark.parametrize("fault", ["cut", "500", "slow"])
def test_a_download_that_is_disturbed_fetches_only_the_part_again(
    faulty: tuple[str, type[Faulty]], tmp_path: Path, fault: str
):
    endpoint, handler = faulty
    handler.faults = {4: fault}
    ranged(endpoint, attempts=3).get_file("k", tmp_path / "copy", digest=sha256_bytes(CONTENT))
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert len(handler.requests) == PARTS + 1
    assert len(set(handler.requests)) == PARTS
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_download_that_gave_up_goes_on_from_what_is_there(faulty: tuple[str, type[Faulty]], tmp_path: Path):
    endpoint, handler = faulty
    handler.faults = dict.fromkeys(range(6, 200), "cut")
    with pytest.raises(TransientFailure):
        ranged(endpoint, attempts=1).get_file("k", tmp_path / "copy", digest=sha256_bytes(CONTENT))
    assert not (tmp_path / "copy").exists()
    assert not Manifest.of_directory(tmp_path).entries
    handler.requests.clear()
    handler.faults = {}
    ranged(endpoint, attempts=1).get_file("k", tmp_path / "copy", digest=sha256_bytes(CONTENT))
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert len(handler.requests) == PARTS - 5


def test_an_object_that_changes_while_it_is_fetched_is_never_mixed(faulty: tuple[str, type[Faulty]], tmp_path: Path):
    endpoint, handler = faulty
    handler.faults = {5: "changed"}
    with pytest.raises(DigestMismatchError):
        ranged(endpoint, attempts=3).get_file("k", tmp_path / "copy", digest=sha256_bytes(CONTENT))
    assert list(tmp_path.iterdir()) == []
    ranged(endpoint, attempts=3).get_file("k", tmp_path / "copy", digest=sha256_bytes(CONTENT[::-1]))
    assert (tmp_path / "copy").read_bytes() == CONTENT[::-1]


def test_a_corrupted_part_is_refused_and_nothing_of_it_is_gone_on_with(
    faulty: tuple[str, type[Faulty]], tmp_path: Path
):
    endpoint, handler = faulty
    handler.faults = {2: "corrupt"}
    with pytest.raises(DigestMismatchError):
        ranged(endpoint, attempts=3).get_file("k", tmp_path / "copy", digest=sha256_bytes(CONTENT))
    assert list(tmp_path.iterdir()) == []
    ranged(endpoint, attempts=3).get_file("k", tmp_path / "copy", digest=sha256_bytes(CONTENT))
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_many_who_fetch_to_one_place_do_not_disturb_one_another(faulty: tuple[str, type[Faulty]], tmp_path: Path):
    endpoint, _ = faulty

    def fetch(_: int) -> bytes:
        return ranged(endpoint, attempts=3).get_file("k", tmp_path / "copy", digest=None).read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(fetch, range(8))) == {CONTENT}
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
