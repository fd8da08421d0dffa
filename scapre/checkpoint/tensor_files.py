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

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scapre.errors import CheckpointError

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
LENGTH = struct.Struct("<Q")
"""A safetensors file starts with the length of its header."""
METADATA = "__metadata__"


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
            change = changes[name].contiguous().reshape(-1).view(torch.uint8)
            opened.seek(start)
            content = torch.frombuffer(bytearray(opened.read(end - start)), dtype=torch.uint8)
            opened.seek(start)
            opened.write((content ^ change).numpy().data)
        opened.flush()
        os.fsync(opened.fileno())


def refuse_pickles(path: Path) -> None:
    """Checks that the file, or every file in the folder, is no pickle.

    Raises:
        CheckpointError: one is; opening it could run any code.
    """
    files = sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]
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
            start = opened.read(9)
        if start.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(file) as archive:
                return any(name.endswith(".pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{file}: expected a readable file, found: {error}; fetch it again") from error
    is_safetensors = start[5:] == b"\0\0\0{"  # a header below a terabyte, whose length may look like a protocol
    return len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5 and not is_safetensors
