"""Safetensors files as bytes: what they hold, reading in part, changing in place; and pickles told by their content.

Guarantees:
    1. A file is read only as far as asked: tensors are memory-mapped, headers are small.
    2. A pickle is never opened; it is refused by suffix and by content, whatever it calls itself.
"""

import json
import os
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scapre.errors import CheckpointError

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
LENGTH = struct.Struct("<Q")
"""A safetensors file starts with the length of its header."""
METADATA = "__metadata__"
METADATA_KEY = "scapre"
"""What is written there stands under this one key: the order of several is not reproducible."""
_ALIGNMENT = 8


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file."""

    dtype: str
    """Type as safetensors writes it, such as F32."""
    shape: tuple[int, ...]
    start: int
    """Its first byte, counted from the start of the file."""
    end: int
    """The byte after its last."""


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Returns what a safetensors file holds, by name, after it was checked to be whole.

    Raises:
        CheckpointError: it is damaged or of another kind.
    """
    try:
        with safe_open(file, framework="pt"):  # refuses truncated files and bad headers
            pass
        with file.open("rb") as opened:
            length = LENGTH.unpack(opened.read(LENGTH.size))[0]
            header = json.loads(opened.read(length))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{file}: expected a readable safetensors file, found: {error}; fetch it again"
        ) from error
    header.pop(METADATA, None)
    data = LENGTH.size + length
    return {
        name: StoredTensor(
            entry["dtype"], tuple(entry["shape"]), data + entry["data_offsets"][0], data + entry["data_offsets"][1]
        )
        for name, entry in header.items()
    }


def read_metadata(file: Path) -> dict[str, str]:
    """Returns the texts a safetensors file carries beside its tensors."""
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata() or {})


def read_tensors(file: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Returns the named tensors of a safetensors file, memory-mapped."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in names}


def flip_bits(file: Path, changes: Mapping[str, Tensor]) -> None:
    """Puts the exclusive or of each tensor's bits and its change into `file`, and nothing else; flushes it to disk."""
    header = read_header(file)
    with file.open("r+b") as opened:
        for name in sorted(changes):
            start, end = header[name].start, header[name].end
            opened.seek(start)
            content = _flipped(opened.read(end - start), changes[name])
            opened.seek(start)
            opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


@dataclass(frozen=True)
class Piece:
    """Bytes of one stored tensor that go into a new one."""

    file: Path
    stored: StoredTensor
    change: Tensor | None = None
    """What its bits are flipped by."""

    def read(self) -> bytes:
        """Returns the bytes, flipped."""
        with self.file.open("rb") as opened:
            opened.seek(self.stored.start)
            content = opened.read(self.stored.end - self.stored.start)
        return content if self.change is None else _flipped(content, self.change)


@dataclass(frozen=True)
class NewTensor:
    """A tensor of a new file, made of stored ones laid end to end."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    is_transposed: bool = False
    """Whether its only piece is a matrix to be written column by column."""

    @property
    def dtype(self) -> str:
        """Type as safetensors writes it."""
        return self.pieces[0].stored.dtype

    @property
    def byte_count(self) -> int:
        """Its size."""
        return sum(piece.stored.end - piece.stored.start for piece in self.pieces)

    @property
    def item_bytes(self) -> int:
        """Bytes of one number."""
        return self.byte_count // max(1, int(np.prod(self.shape)))

    def write(self, opened: IO[bytes]) -> None:
        """Writes its bytes."""
        for piece in self.pieces:
            content = piece.read()
            if self.is_transposed:
                numbers = np.frombuffer(content, dtype=f"V{self.item_bytes}").reshape(self.shape[::-1])
                content = np.ascontiguousarray(numbers.T).tobytes()
            opened.write(content)


def write_tensors(file: Path, tensors: Mapping[str, NewTensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file tensor by tensor, so that no more than one is in memory; flushes it to disk.

    Wide types come first, which keeps every tensor aligned; the same tensors give the same bytes.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].item_bytes, name))
    header: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    first = 0
    for name in order:
        tensor, last = tensors[name], first + tensors[name].byte_count
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [first, last]}
        first = last
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("wb") as opened:
        opened.write(LENGTH.pack(len(text)) + text)
        for name in order:
            tensors[name].write(opened)
        opened.flush()
        os.fsync(opened.fileno())


def everything_in(folder: Path) -> list[Path]:
    """Returns every file and folder below `folder`, in order, those behind links to folders among them.

    Raises:
        CheckpointError: a link leads back into a folder that holds it.
    """
    found: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        if looped := [name for name in folders if here.resolve().is_relative_to((here / name).resolve())]:
            raise CheckpointError(f"expected a folder without loops, found the link {here / looped[0]}; remove it")
        found += [here / name for name in (*folders, *files)]
    return sorted(found)


def refuse_pickles(path: Path) -> None:
    """Checks that the file, or every file in the folder, is no pickle.

    Raises:
        CheckpointError: one is; opening it could run any code.
    """
    files = [found for found in everything_in(path) if found.is_file()] if path.is_dir() else [path]
    pickles = [file for file in files if file.suffix.lower() in PICKLE_SUFFIXES or is_pickle(file)]
    if pickles:
        first = pickles[0].relative_to(path) if path.is_dir() else pickles[0].name
        raise CheckpointError(
            f"{path}: found the pickle {first} ({len(pickles)} in all), and opening a pickle can run any code; "
            "convert the weights to safetensors and remove it"
        )


def is_pickle(file: Path) -> bool:
    """Returns whether the content is a pickle of protocol 2 or later, or an archive that holds one."""
    try:
        with file.open("rb") as opened:
            start = opened.read(4)
        if start.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(file) as archive:
                return any(name.endswith(".pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{file}: expected a readable file, found: {error}; fetch it again") from error
    is_marked = len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5
    return is_marked and not _is_safetensors(file)  # whose length may look like the mark of a protocol


def _is_safetensors(file: Path) -> bool:
    try:
        read_header(file)
    except CheckpointError:
        return False
    return file.suffix == ".safetensors"  # what is called otherwise may be both, and whoever opens it take the other


def _flipped(content: bytes, change: Tensor) -> bytes:
    flips = change.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return (np.frombuffer(content, dtype=np.uint8) ^ flips).tobytes()
