"""Objects in S3 or anything that speaks its protocol.

* Large files travel in parts, in parallel; a part that fails is sent again by botocore, a cut stream by us.
* A fetch that was cut or killed goes on from the parts that are there (`infra.downloads`).
* Each object carries its SHA-256 as metadata, and is checked against it when fetched: servers do not do this.
* Time-outs, 5xx and cut streams are transient; missing objects, refused credentials and wrong content are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import boto3
import tenacity
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as boto_errors
from botocore.config import Config
from s3transfer.exceptions import RetriesExceededError

from infra.digests import CHUNK_BYTES, require_digest, sha256_bytes, sha256_file
from infra.downloads import Remote, discard, fetch_parts, held_partial
from infra.errors import (
    DigestMismatchError,
    InfraError,
    NoSpaceError,
    NotFoundError,
    PermanentFailure,
    TransientFailure,
)
from infra.storage import ObjectStore, require_discardable, require_key

Result = TypeVar("Result")

_MISSING = {"404", "NoSuchKey", "NotFound"}
_FULL = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull"}
_BUSY = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests", "OperationAborted"}
# S3 asks for the same request again; an object that was replaced while its parts were fetched is fetched anew
_CONFLICT = {"ConditionalRequestConflict", "PreconditionFailed", "412"}
_CUT = (
    boto_errors.HTTPClientError,
    boto_errors.ConnectionError,
    boto_errors.IncompleteReadError,
    RetriesExceededError,
    ConnectionError,
    TimeoutError,
)


class S3Store(ObjectStore):
    """Objects below one prefix of one bucket."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        part_bytes: int = 64 << 20,
        attempts: int = 4,
        first_wait_seconds: float = 0.5,
        timeout_seconds: float = 60.0,
    ) -> None:
        """Opens a client; nothing is requested yet.

        Args:
            bucket: Must exist; this project never creates one.
            prefix: Put before every key.
            endpoint: URL of a server other than Amazon's.
            region: Region to sign for; boto3's own chain when None.
            access_key_id: With `secret_access_key`; boto3's own chain when None.
            secret_access_key: See `access_key_id`.
            session_token: For temporary credentials.
            part_bytes: Files larger than this travel in parts of this size.
            attempts: How often a transient failure is tried, at each of the two levels.
            first_wait_seconds: Longest wait before the second attempt; doubles each time, up to 30 s.
            timeout_seconds: For connecting, and for silence while reading.
        """
        self.bucket, self.prefix = bucket, prefix.strip("/")
        self._client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            aws_access_key_id=access_key_id,
            aws_secret_access_key=secret_access_key,
            aws_session_token=session_token,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": attempts},
                connect_timeout=timeout_seconds,
                read_timeout=timeout_seconds,
                s3={"addressing_style": "path" if endpoint else "auto"},  # own servers rarely have wildcard names
            ),
        )
        self._transfer = TransferConfig(
            multipart_threshold=part_bytes,
            multipart_chunksize=part_bytes,
            preferred_transfer_client="classic",
        )
        self._part_bytes = part_bytes
        self._attempts, self._first_wait_seconds = attempts, first_wait_seconds

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def put_bytes(self, key: str, content: bytes) -> str:
        """See `ObjectStore.put_bytes`."""
        name, digest = self._name(key), sha256_bytes(content)
        self._call(
            self.locate(key),
            lambda: self._client.put_object(Bucket=self.bucket, Key=name, Body=content, Metadata={"sha256": digest}),
        )
        return digest

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """See `ObjectStore.put_if_absent`.

        False may also follow an own first attempt whose answer was lost: compare the content where it matters.
        """
        name, metadata = self._name(key), {"sha256": sha256_bytes(content)}

        def put() -> bool:
            try:
                self._client.put_object(Bucket=self.bucket, Key=name, Body=content, Metadata=metadata, IfNoneMatch="*")
            except boto_errors.ClientError as error:
                if _code(error) == "PreconditionFailed":
                    return False
                raise
            return True

        return self._call(self.locate(key), put)

    def put_file(self, key: str, path: Path) -> str:
        """See `ObjectStore.put_file`."""
        if not path.is_file():
            raise NotFoundError(f"expected a file at {path}, found none; check the path")
        name, digest = self._name(key), sha256_file(path)

        def put() -> str:
            # upload_fileobj, since upload_file hides the error's code behind S3UploadFailedError
            with path.open("rb") as handle:
                self._client.upload_fileobj(
                    handle, self.bucket, name, ExtraArgs={"Metadata": {"sha256": digest}}, Config=self._transfer
                )
            return digest

        return self._call(self.locate(key), put)

    def get_bytes(self, key: str, *, digest: str | None = None) -> bytes:
        """See `ObjectStore.get_bytes`."""
        name = self._name(key)

        def get() -> bytes:
            answer = self._client.get_object(Bucket=self.bucket, Key=name)
            content: bytes = answer["Body"].read()
            self._require(key, sha256_bytes(content), digest, answer["Metadata"].get("sha256"))
            return content

        return self._call(self.locate(key), get)

    def get_file(self, key: str, path: Path, *, digest: str | None = None) -> Path:
        """See `ObjectStore.get_file`."""
        name = self._name(key)
        if digest is not None and path.is_file() and sha256_file(path) == digest:
            return path

        with held_partial(path) as place:

            def get() -> None:
                head = self._client.head_object(Bucket=self.bucket, Key=name)
                remote = Remote(name, head["ETag"], int(head["ContentLength"]))
                fetch_parts(remote, partial(self._read, name, head["ETag"]), partial=place, part_bytes=self._part_bytes)
                try:
                    self._require(key, sha256_file(place), digest, head["Metadata"].get("sha256"))
                except DigestMismatchError:
                    discard(place)
                    raise

            self._call(self.locate(key), get)
        return path

    def _read(self, name: str, etag: str, first: int, last: int) -> bytes:
        answer = self._client.get_object(Bucket=self.bucket, Key=name, Range=f"bytes={first}-{last}", IfMatch=etag)
        content: bytes = answer["Body"].read()
        if len(content) != last - first + 1:
            raise TransientFailure(f"{name}: expected {last - first + 1} bytes, found {len(content)}; try again")
        return content

    def hash_object(self, key: str) -> str:
        """See `ObjectStore.hash_object`."""
        name = self._name(key)

        def read() -> str:
            total = hashlib.sha256()
            for chunk in self._client.get_object(Bucket=self.bucket, Key=name)["Body"].iter_chunks(CHUNK_BYTES):
                total.update(chunk)
            return total.hexdigest()

        return self._call(self.locate(key), read)

    def size_bytes(self, key: str) -> int | None:
        """See `ObjectStore.size_bytes`."""
        name = self._name(key)
        try:
            answer = self._call(self.locate(key), lambda: self._client.head_object(Bucket=self.bucket, Key=name))
        except NotFoundError:
            return None
        return int(answer["ContentLength"])

    def list_keys(self, prefix: str = "") -> list[str]:
        """See `ObjectStore.list_keys`."""
        start = f"{self.prefix}/" if self.prefix else ""

        def read() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start + prefix)
            return sorted(item["Key"][len(start) :] for page in pages for item in page.get("Contents", []))

        return self._call(self.uri, read)

    def discard(self, key: str) -> None:
        """See `ObjectStore.discard`."""
        name = self._name(require_discardable(key))
        self._call(self.locate(key), lambda: self._client.delete_object(Bucket=self.bucket, Key=name))

    def _require(self, key: str, found: str, *expected: str | None) -> None:
        for digest in expected:
            require_digest(found, digest, what=self.locate(key))

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{require_key(key)}".lstrip("/")

    def _call(self, uri: str, operation: Callable[[], Result]) -> Result:
        def once() -> Result:
            with _sorted_failures(uri):
                return operation()

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientFailure),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=tenacity.wait_random_exponential(multiplier=self._first_wait_seconds, max=30),
            reraise=True,
        )
        return retrying(once)


@contextmanager
def _sorted_failures(uri: str) -> Generator[None]:
    try:
        yield
    except InfraError:
        raise
    except boto_errors.ClientError as error:
        raise _sorted_answer(uri, error) from error
    except boto_errors.FlexibleChecksumError as error:
        raise DigestMismatchError(
            f"{uri}: expected the content that was stored, found another checksum ({error}); run the same command "
            "again, and if it says the same, store the object again from the original"
        ) from error
    except _CUT as error:
        raise TransientFailure(f"{uri}: expected an answer from the store, found {error}; try again") from error
    except boto_errors.BotoCoreError as error:
        raise PermanentFailure(
            f"{uri}: expected a usable S3 client, found: {error}; check SCAPRE_S3_ENDPOINT and the credentials"
        ) from error


def _sorted_answer(uri: str, error: boto_errors.ClientError) -> InfraError:
    code, status = _code(error), int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _MISSING:
        return NotFoundError(f"expected an object at {uri}, found none; check the key and the store")
    if code in _FULL or status == 507:
        return NoSpaceError(f"{uri}: expected room for the object, found {code}; free space or raise the quota")
    if code == "NotImplemented":
        return PermanentFailure(f"{uri}: the store lacks a request this needs ({error}); use one that has it")
    if status >= 500 or status == 429 or code in _BUSY | _CONFLICT:
        return TransientFailure(f"{uri}: expected success, found {code} ({status}); try again")
    return PermanentFailure(f"{uri}: expected success, found {error}; check bucket, credentials and permissions")


def _code(error: boto_errors.ClientError) -> str:
    details: dict[str, Any] = dict(error.response.get("Error", {}))
    return str(details.get("Code", ""))
