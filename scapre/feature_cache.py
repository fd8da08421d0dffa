"""Encoded prompts on disk: a text encoder reads retained text once, whatever is asked of it afterwards.

Guarantees:
    1. Features serve only the encoder, tokenizer, prompt, padding, kind of processor, and releases of torch and
       transformers they come from.
    2. Features whose digest does not fit are made anew.
    3. A cache that cannot be used costs time and a warning, never an edit.
"""

import dataclasses
import hashlib
import json
import sqlite3
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scapre.architectures.base import BaseModel, combined_digest
from scapre.concepts import canonical_json
from scapre.slots import EncodedPrompt, Run
from scapre.text import TextSource

_TABLE = "CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, runs TEXT, held BLOB, digest TEXT) WITHOUT ROWID"
_OF_STORAGE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""What a configuration says of files and types; the weights' own types are in their digests."""
_OF_CALLS = ("padding", "truncation")
"""State of a tokenizer that its last call left behind."""
_WAIT_SECONDS = 30.0
_READING = 3
"""Raised whenever the same prompt may get other bits from the same encoder."""


class FeatureCache:
    """What one way to read prompts with the text encoders of a base model gave; many processes may use one file."""

    def __init__(self, file: Path, base: BaseModel, text: TextSource) -> None:
        self._file, self._device = file, _device(text)
        self._encoder = encoder_digest(base, text)
        self._connection: sqlite3.Connection | None = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(file, timeout=_WAIT_SECONDS)
            self._connection.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def read(self, prompts: Iterable[str], padding: int) -> dict[str, EncodedPrompt]:
        """Returns those prompts whose features are there and whole, on the encoder's device."""
        found: dict[str, EncodedPrompt] = {}
        if self._connection is None:
            return found
        query = "SELECT runs, held, digest FROM features WHERE key = ?"
        try:
            for prompt in prompts:
                row = self._connection.execute(query, (self._key(prompt, padding),)).fetchone()
                if row and _is_whole(*row):
                    features = safetensors.torch.load(row[1])["features"].to(self._device)
                    found[prompt] = EncodedPrompt(features, tuple(_run(held) for held in json.loads(row[0])))
        except sqlite3.Error as error:
            self._give_up(error)
        return found

    def keep(self, encoded: Mapping[str, EncodedPrompt], padding: int) -> None:
        """Writes the prompts' features."""
        if self._connection is None:
            return
        rows = []
        for prompt, made in encoded.items():
            runs = canonical_json([dataclasses.asdict(run) for run in made.runs])
            held = safetensors.torch.save({"features": made.features.cpu().contiguous()})
            rows.append((self._key(prompt, padding), runs, held, _digest(runs, held)))
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

    def _key(self, prompt: str, padding: int) -> str:
        return hashlib.sha256(canonical_json([self._encoder, prompt, padding]).encode()).hexdigest()

    def _give_up(self, error: Exception) -> None:
        self.close()
        warnings.warn(
            f"feature cache {self._file} cannot be used ({error}), text is encoded anew; free space or delete the file",
            stacklevel=2,
        )


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
