"""Object storage: where large bytes live.

* Single objects have keys like `runs/17/evidence.zip`; `put_*` returns their SHA-256.
* Files of a directory are stored once by content (`blobs/sha256/…`) and listed in `KEY/manifest.json`; two candidates
  of one base share every file that the edit did not touch.
* Everything that is fetched is checked before it appears: written beside its destination, verified, renamed.
* What is already there and identical is neither sent nor fetched again, so a killed transfer resumes.
* Nothing is deleted but what people dropped for us to read: `discard` refuses any key outside `DISCARDABLE`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from infra.atomic import written_beside
from infra.digests import CHUNK_BYTES, require_digest, sha256_bytes, sha256_file, sha256_handle
from infra.errors import DigestMismatchError, NotFoundError, PermanentFailure, SettingsError
from infra.manifests import MANIFEST_NAME, Manifest, ManifestEntry

if TYPE_CHECKING:
    from infra.settings import Settings


DISCARDABLE = ("inbox/", "inbox-taken/", "inbox-refused/")
"""Where files dropped by people lie, and the copies made of them; they hold personal data and must not stay."""


class ObjectStore(Protocol):
    """Eight primitives that a backend implements, and directories built on them."""

    @property
    def uri(self) -> str:
        """Root of the store, without a slash at the end."""
        ...

    def put_bytes(self, key: str, content: bytes) -> str:
        """Stores `content`, replacing what was there; returns its SHA-256."""
        ...

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """Stores `content` unless `key` exists; says whether it was stored. Exactly one of many rivals succeeds."""
        ...

    def put_file(self, key: str, path: Path) -> str:
        """Stores a file, replacing what was there; returns its SHA-256."""
        ...

    def get_bytes(self, key: str, *, digest: str | None = None) -> bytes:
        """Returns an object's content; with `digest`, only that content."""
        ...

    def get_file(self, key: str, path: Path, *, digest: str | None = None) -> Path:
        """Fetches an object to `path`; with `digest`, only that content, and not again if `path` holds it."""
        ...

    def hash_object(self, key: str) -> str:
        """Returns the SHA-256 of an object's bytes as they are stored now, read in chunks and kept nowhere."""
        ...

    def size_bytes(self, key: str) -> int | None:
        """Returns an object's size, or None when there is no such object."""
        ...

    def list_keys(self, prefix: str = "") -> list[str]:
        """Returns all keys that start with `prefix`, sorted."""
        ...

    def discard(self, key: str) -> None:
        """Deletes an object below `DISCARDABLE`; one that is not there is no fault.

        Raises:
            PermanentFailure: a key of anything else.
        """
        ...

    def exists(self, key: str) -> bool:
        """Says whether there is an object, or a whole stored directory, under `key`."""
        return self.size_bytes(key) is not None or self.size_bytes(f"{key}/{MANIFEST_NAME}") is not None

    def locate(self, key: str) -> str:
        """Returns the URI of `key`, as the registry records it."""
        return f"{self.uri}/{require_key(key)}"

    def key_of(self, uri: str) -> str:
        """Returns the key of a URI from `locate`, and refuses one of another store."""
        if not uri.startswith(f"{self.uri}/"):
            raise PermanentFailure(
                f"expected a URI below {self.uri}, found {uri}; set SCAPRE_OBJECT_STORE_URI to the store that holds it"
            )
        return require_key(uri[len(self.uri) + 1 :])

    def put_directory(self, key: str, folder: Path) -> str:
        """Stores every file below `folder`; returns the directory's digest.

        The manifest is written last: a directory whose manifest is there is complete.
        """
        require_key(key)
        manifest = Manifest.of_directory(folder)
        for entry in manifest.entries:
            if self.size_bytes(_blob_key(entry)) != entry.bytes:
                stored = self.put_file(_blob_key(entry), folder / entry.path)
                require_digest(stored, entry.sha256, what=f"{folder / entry.path} changed while it was being stored")
        return self.put_bytes(f"{key}/{MANIFEST_NAME}", manifest.to_json())

    def manifest(self, key: str, *, digest: str | None = None) -> Manifest:
        """Returns the manifest of a stored directory; with `digest`, only the one that has it."""
        return Manifest.from_json(self.get_bytes(f"{require_key(key)}/{MANIFEST_NAME}", digest=digest))

    def get_directory(self, key: str, folder: Path, *, digest: str | None = None) -> Path:
        """Fetches a stored directory into `folder` and returns it; on return every file is verified.

        Files of `folder` that already have the right content are not fetched; call again after a kill to resume.

        Raises:
            PermanentFailure: `folder` holds files that are not in the manifest.
        """
        manifest = self.manifest(key, digest=digest)
        if strangers := manifest.strangers(folder):
            raise PermanentFailure(
                f"expected only files of {self.locate(key)} in {folder}, found also {', '.join(strangers)}; "
                "choose an empty folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for entry in manifest.entries:
            self.get_file(_blob_key(entry), folder / entry.path, digest=entry.sha256)
        return folder

    def differences(self, key: str, *, digest: str, on_progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Returns one sentence for each stored file that is not, byte for byte, what the directory's digest covers.

        Args:
            key: Of the stored directory.
            digest: What `put_directory` returned.
            on_progress: Called with bytes read and bytes in all.
        """
        try:
            manifest = self.manifest(key, digest=digest)
        except PermanentFailure as error:
            return [f"{MANIFEST_NAME}: {error}"]
        sentences, done = [], 0
        for entry in manifest.entries:
            try:
                found = self.hash_object(_blob_key(entry))
            except NotFoundError:
                sentences.append(f"{entry.path}: missing from the store")
            except DigestMismatchError as error:  # the store's own checksum says so, before ours can
                sentences.append(f"{entry.path}: {error}")
            else:
                if found != entry.sha256:
                    sentences.append(f"{entry.path}: expected SHA-256 {entry.sha256}, found {found}")
            done += entry.bytes
            if on_progress:
                on_progress(done, manifest.total_bytes)
        return sentences


class LocalStore(ObjectStore):
    """Objects as plain files below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()

    @property
    def uri(self) -> str:
        """`file://` and the folder's absolute path."""
        return self.root.as_uri()

    def put_bytes(self, key: str, content: bytes) -> str:
        """See `ObjectStore.put_bytes`."""
        with written_beside(self._path(key)) as handle:
            handle.write(content)
        return sha256_bytes(content)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """See `ObjectStore.put_if_absent`; a hard link is the atomic step."""
        try:
            with written_beside(self._path(key), overwrite=False) as handle:
                handle.write(content)
        except FileExistsError:
            return False
        return True

    def put_file(self, key: str, path: Path) -> str:
        """See `ObjectStore.put_file`."""
        return _copy(path, self._path(key))

    def get_bytes(self, key: str, *, digest: str | None = None) -> bytes:
        """See `ObjectStore.get_bytes`."""
        content = self._existing(key).read_bytes()
        require_digest(sha256_bytes(content), digest, what=self.locate(key))
        return content

    def get_file(self, key: str, path: Path, *, digest: str | None = None) -> Path:
        """See `ObjectStore.get_file`."""
        if digest is not None and path.is_file() and sha256_file(path) == digest:
            return path
        _copy(self._existing(key), path, digest=digest)
        return path

    def hash_object(self, key: str) -> str:
        """See `ObjectStore.hash_object`."""
        return sha256_file(self._existing(key))

    def size_bytes(self, key: str) -> int | None:
        """See `ObjectStore.size_bytes`."""
        path = self._path(key)
        return path.stat().st_size if path.is_file() else None

    def list_keys(self, prefix: str = "") -> list[str]:
        """See `ObjectStore.list_keys`."""
        keys = (
            path.relative_to(self.root).as_posix()
            for path in self.root.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )
        return sorted(key for key in keys if key.startswith(prefix))

    def discard(self, key: str) -> None:
        """See `ObjectStore.discard`."""
        self._path(require_discardable(key)).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.root / require_key(key)

    def _existing(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise NotFoundError(f"expected an object at {self.locate(key)}, found none; check the key and the store")
        return path


def open_store(uri: str, *, settings: Settings | None = None) -> ObjectStore:
    """Returns the store that a URI names: `file:///folder` or `s3://bucket/prefix`.

    Args:
        uri: Root of the store.
        settings: Endpoint, region, credentials and part size for `s3://`; boto3's own chain without them.

    Raises:
        SettingsError: a scheme that no adapter serves, or a URI without a folder or bucket.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.path.strip("/") and parts.netloc in ("", "localhost"):
        return LocalStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from infra.s3 import S3Store  # boto3 is only paid for where it is used

        options: dict[str, Any] = settings.s3_options() if settings else {}
        return S3Store(parts.netloc, parts.path.strip("/"), **options)
    raise SettingsError(
        f"expected an object store like file:///folder or s3://bucket/prefix, found {uri!r} "
        f"(scheme {parts.scheme!r}); set SCAPRE_OBJECT_STORE_URI"
    )


def require_key(key: str) -> str:
    """Returns `key`, or refuses one that is empty, hidden, or could leave the store."""
    parts = PurePosixPath(key).parts
    if not parts or "/".join(parts) != key or "\\" in key or "\0" in key or any(part[0] == "." for part in parts):
        raise PermanentFailure(
            f"expected a key like runs/17/edit.safetensors, found {key!r}; no leading slash, '..' or hidden parts"
        )
    return key


def require_discardable(key: str) -> str:
    """Returns `key`, or refuses one that nobody may delete."""
    if not key.startswith(DISCARDABLE):
        raise PermanentFailure(
            f"expected a key below {', '.join(DISCARDABLE)}, found {key!r}; nothing else in the store is ever deleted"
        )
    return require_key(key)


def _blob_key(entry: ManifestEntry) -> str:
    return f"blobs/sha256/{entry.sha256[:2]}/{entry.sha256}"


def _copy(source: Path, destination: Path, *, digest: str | None = None) -> str:
    if not source.is_file():
        raise NotFoundError(f"expected a file at {source}, found none; check the path")
    with source.open("rb") as reader, written_beside(destination) as writer:
        shutil.copyfileobj(reader, writer, CHUNK_BYTES)
        return require_digest(sha256_handle(writer), digest, what=str(source))
