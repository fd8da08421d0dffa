"""Encoded prompts on disk: a text encoder reads a sentence again only for slots that were not kept.

Guarantees:
    1. Features serve only the encoder, tokenizer, prompt, choice of padding, kind of processor, and releases of torch
       and transformers they come from.
    2. Features whose digest does not fit are made anew.
    3. A cache that cannot be used costs time and a warning, never an edit.
"""

import dataclasses
import hashlib
import json
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scapre.architectures.base import BaseModel
from scapre.concepts import canonical_json
from scapre.digests import combined_digest
from scapre.slots import EncodedPrompt, Kept, Run
from scapre.text import TextSource

_TABLE = "CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, runs TEXT, held BLOB, digest TEXT) WITHOUT ROWID"
_FIND = "SELECT runs, held, digest FROM features WHERE key = ?"
_OF_STORAGE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""What a configuration says of files and types; the weights' own types are in their digests."""
_OF_CALLS = ("padding", "truncation")
"""State of a tokenizer that its last call left behind."""
_WAIT_SECONDS = 30.0
_READING = 3
"""Raised whenever the same prompt may get other bits from the same encoder."""


class FeatureCache:
    """A file of what text encoders made of prompts; many processes may use one."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection: sqlite3.Connection | None = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(file, timeout=_WAIT_SECONDS)
            self._connection.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def of(self, base: BaseModel, text: TextSource) -> "CachedFeatures":
        """Returns what one way to read prompts with the text encoders of a base gave."""
        return CachedFeatures(self, encoder_digest(base, text), _device(text))

    def find(self, keys: Iterable[str]) -> Iterator[Any]:
        """Yields what is held of each key: runs, features and digest, or `None`."""
        for key in keys:
            row = None
            try:
                if self._connection is not None:
                    row = self._connection.execute(_FIND, (key,)).fetchone()
            except sqlite3.Error as error:
                self._give_up(error)
            yield row

    def write(self, rows: Iterable[tuple[str, str, bytes, str]]) -> None:
        """Writes key, runs, features and digest."""
        if self._connection is None:
            return
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        """Closes the file; nothing is read or kept afterwards."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _give_up(self, error: Exception) -> None:
        self.close()
        warnings.warn(
            f"feature cache {self._file} cannot be used ({error}), text is encoded anew; free space, delete the file, "
            "or choose a place that can be written to",
            stacklevel=2,
        )


@dataclass(frozen=True)
class CachedFeatures:
    """The part of a cache that one way to read prompts made."""

    cache: FeatureCache
    encoder: str
    """Digest of all that features depend on."""
    device: torch.device

    def read(self, wanted: Sequence[tuple[str, Kept]]) -> dict[tuple[str, Kept], EncodedPrompt]:
        """Returns those prompts, each with what is kept of it, that are there and whole, on the encoder's device."""
        found: dict[tuple[str, Kept], EncodedPrompt] = {}
        rows = self.cache.find(self._key(prompt, kept) for prompt, kept in wanted)
        for one, row in zip(wanted, rows, strict=True):
            if row and _is_whole(*row):
                features = safetensors.torch.load(row[1])["features"].to(self.device)
                found[one] = EncodedPrompt(features, tuple(_run(held) for held in json.loads(row[0])))
        return found

    def keep(self, encoded: Mapping[tuple[str, Kept], EncodedPrompt]) -> None:
        """Writes features."""
        rows = []
        for (prompt, kept), made in encoded.items():
            runs = canonical_json([dataclasses.asdict(run) for run in made.runs])
            held = safetensors.torch.save({"features": made.features.cpu().contiguous()})
            rows.append((self._key(prompt, kept), runs, held, _digest(runs, held)))
        self.cache.write(rows)

    def _key(self, prompt: str, kept: Kept) -> str:
        told = kept if isinstance(kept, int) else [[run.end, *run.padding] for run in kept]
        return hashlib.sha256(canonical_json([self.encoder, prompt, told]).encode()).hexdigest()


def encoder_digest(base: BaseModel, text: TextSource) -> str:
    """Returns the SHA-256 over all that features depend on: weights, configurations, tokenizers, how they are read."""
    weights = {name: base.weights.tensor_digests[name] for name in text.tensors()}
    releases = [torch.__version__, transformers.__version__]
    how = canonical_json([_READING, _described(text), _processor(_device(text)), *releases])
    return combined_digest({**weights, "how": hashlib.sha256(how.encode()).hexdigest()})


def _device(text: TextSource) -> torch.device:
    return next(iter(text.tensors().values())).device


def _processor(device: torch.device) -> str:
    """Returns what decides in which order sums are taken: the last bits of features follow it."""
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{device.type} {model}"


def _described(part: Any) -> Any:
    if isinstance(part, PreTrainedTokenizerBase):
        return [type(part).__name__, _rules(part), part.pad_token_id, part.model_max_length]
    if isinstance(part, PreTrainedModel):
        config = part.config.to_dict()
        lasting = {name: repr(config[name]) for name in sorted(config) if name not in _OF_STORAGE}
        return [type(part).__name__, lasting, part.config._attn_implementation]
    if isinstance(part, nn.Module):
        return repr(part)
    if dataclasses.is_dataclass(part):
        fields = {field.name: _described(getattr(part, field.name)) for field in dataclasses.fields(part)}
        return [type(part).__name__, fields]
    return [_described(one) for one in part] if isinstance(part, tuple) else repr(part)


def _rules(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Returns all that decides how a tokenizer cuts text; one written in Python has its rules in its class."""
    if not tokenizer.is_fast:
        return [sorted(tokenizer.get_vocab().items()), repr(tokenizer.init_kwargs)]
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: value for name, value in backend.items() if name not in _OF_CALLS}


def _run(held: Mapping[str, Any]) -> Run:
    fields: dict[str, Any] = {**held, "padding": tuple(held["padding"])}
    return Run(**fields)


def _is_whole(runs: object, held: object, digest: object) -> bool:
    return isinstance(runs, str) and isinstance(held, bytes) and _digest(runs, held) == digest


def _digest(runs: str, held: bytes) -> str:
    return hashlib.sha256(runs.encode() + held).hexdigest()
