"""Identity of bytes: lowercase hexadecimal SHA-256, computed in bounded memory."""

from __future__ import annotations

import hashlib
from io import BufferedRandom
from pathlib import Path

import rfc8785

from infra.errors import DigestMismatchError, PermanentFailure

CHUNK_BYTES = 1 << 20


def sha256_bytes(content: bytes) -> str:
    """Returns the SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content, read in chunks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_handle(handle: BufferedRandom) -> str:
    """Returns the SHA-256 of everything in an open, readable file: what was written, not what was meant to be."""
    handle.flush()
    handle.seek(0)
    return hashlib.file_digest(handle, "sha256").hexdigest()


def canonical_json(value: object) -> bytes:
    """Returns the RFC 8785 form of `value`: one byte string for one meaning, whatever the order of keys.

    Raises:
        PermanentFailure: `value` holds something that JSON cannot carry exactly (NaN, a huge integer, an object).
    """
    try:
        return rfc8785.dumps(value)  # ty: ignore[invalid-argument-type]  it checks the type itself, and names it
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise PermanentFailure(
            f"expected a value that JSON can carry exactly, found one that it cannot ({error}); "
            "turn it into text, numbers within 2**53, lists and mappings first"
        ) from error


def require_digest(found: str, expected: str | None, *, what: str) -> str:
    """Returns `found`, or refuses content whose digest is not `expected` (when one is expected).

    Raises:
        DigestMismatchError: the digests differ.
    """
    if expected is not None and found != expected.lower():
        raise DigestMismatchError(
            f"{what}: expected SHA-256 {expected}, found {found}; the content was altered or cut short: "
            "remove it and store it again from the original"
        )
    return found
