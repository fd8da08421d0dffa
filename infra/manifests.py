"""What a stored directory consists of.

* A manifest lists every file as path, size and SHA-256, sorted by path; nothing else is part of the directory.
* The manifest's own SHA-256 is the directory's digest.
* Paths stay inside the directory: absolute paths, `..` and linked folders are refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from infra.atomic import is_partial
from infra.digests import canonical_json, sha256_bytes, sha256_file
from infra.errors import DigestMismatchError, NotFoundError, PermanentFailure

MANIFEST_NAME = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class ManifestEntry:
    """One file of a directory."""

    path: str
    """Relative to the directory, with forward slashes."""
    bytes: int
    """Size of the content."""
    sha256: str
    """Digest of the content."""

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        if not parts or self.path.startswith("/") or ".." in parts or "\\" in self.path or "\0" in self.path:
            raise PermanentFailure(
                f"expected a path inside the directory, found {self.path!r}; the manifest was not written by this "
                "project or was altered: store the directory again"
            )
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise PermanentFailure(f"expected 64 hexadecimal digits for {self.path!r}, found {self.sha256!r}")

    def is_at(self, file: Path) -> bool:
        """Says whether `file` holds exactly this content (sizes first, since they are free)."""
        return file.is_file() and file.stat().st_size == self.bytes and sha256_file(file) == self.sha256


@dataclass(frozen=True)
class Manifest:
    """All files of a directory, sorted by path."""

    entries: tuple[ManifestEntry, ...]

    @property
    def digest(self) -> str:
        """The directory's digest: SHA-256 of the manifest's canonical JSON."""
        return sha256_bytes(self.to_json())

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(entry.bytes for entry in self.entries)

    def to_json(self) -> bytes:
        """Returns the canonical JSON that the digest is taken from."""
        files = [{"path": entry.path, "bytes": entry.bytes, "sha256": entry.sha256} for entry in self.entries]
        return canonical_json({"format": _FORMAT, "files": files})

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Reads a manifest back and refuses anything that would not give the same bytes again.

        Raises:
            PermanentFailure: not a manifest, an unknown format, or a path that leaves the directory.
        """
        try:
            document = json.loads(content)
            if document["format"] != _FORMAT:
                raise PermanentFailure(
                    f"expected manifest format {_FORMAT}, found {document['format']!r}; upgrade this package"
                )
            files: list[Mapping[str, object]] = document["files"]
            entries = tuple(
                ManifestEntry(path=str(file["path"]), bytes=int(str(file["bytes"])), sha256=str(file["sha256"]))
                for file in files
            )
        except (ValueError, KeyError, TypeError) as error:
            raise PermanentFailure(
                f"expected a manifest (JSON with format and files), found something else ({error}); "
                "store the directory again"
            ) from error
        return cls(entries)

    @classmethod
    def of_directory(cls, folder: Path) -> Manifest:
        """Reads every file below `folder` and returns its manifest.

        Raises:
            NotFoundError: `folder` is not a directory.
            PermanentFailure: a linked folder, whose content might lie anywhere.
        """
        if not folder.is_dir():
            raise NotFoundError(f"expected a directory at {folder}, found none; check the path")
        entries = [
            ManifestEntry(path=path, bytes=file.stat().st_size, sha256=sha256_file(file))
            for path, file in _files_below(folder).items()
        ]
        return cls(tuple(entries))

    def strangers(self, folder: Path) -> list[str]:
        """Returns the paths of files below `folder` that the manifest does not list."""
        listed = {entry.path for entry in self.entries}
        return [path for path in (_files_below(folder) if folder.is_dir() else {}) if path not in listed]

    def differences(self, folder: Path) -> list[str]:
        """Returns one sentence for each file of `folder` that is missing, different or not in the manifest."""
        found = _files_below(folder) if folder.is_dir() else {}
        sentences = [f"{path}: not in the manifest" for path in self.strangers(folder)]
        for entry in self.entries:
            if entry.path not in found:
                sentences.append(f"{entry.path}: missing")
            elif not entry.is_at(found[entry.path]):
                sentences.append(f"{entry.path}: content differs from the manifest")
        return sorted(sentences)

    def require(self, folder: Path) -> None:
        """Refuses a folder that is not exactly what the manifest lists.

        Raises:
            DigestMismatchError: naming every difference.
        """
        if sentences := self.differences(folder):
            raise DigestMismatchError(
                f"{folder} is not the directory {self.digest}: {'; '.join(sentences)}; fetch it again"
            )


def _files_below(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for root, directories, names in os.walk(folder):
        for linked in (Path(root, name) for name in directories if Path(root, name).is_symlink()):
            raise PermanentFailure(
                f"expected plain folders, found the link {linked}; copy what it points to in its place"
            )
        for file in (Path(root, name) for name in names):
            if not is_partial(file):
                files[file.relative_to(folder).as_posix()] = file
    return dict(sorted(files.items()))
