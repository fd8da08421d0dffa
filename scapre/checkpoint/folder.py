"""Checkpoints as folders in diffusers' layout: inspected by their configuration and headers, read in part."""

import contextlib
import json
import re
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from scapre.architectures import Architecture, BaseModel, Parts, assemble, check_class, find_architecture, tokenizer_of
from scapre.architectures.base import memory_names
from scapre.checkpoint.info import CheckpointInfo
from scapre.checkpoint.tensor_files import StoredTensor, read_header, read_tensors, refuse_pickles
from scapre.errors import CheckpointError, UnsupportedArchitectureError
from scapre.text import plain_name

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
ENCODER_STEM, DENOISER_STEM = "model", "diffusion_pytorch_model"
SHARD_OF = re.compile(r"-of-(\d+)\.safetensors$")
MODEL_INDEX = "model_index.json"
"""What makes a folder a checkpoint in diffusers' layout."""


def inspect_folder(folder: Path) -> CheckpointInfo:
    """Returns what the checkpoint in `folder` is.

    Raises:
        CheckpointError: pickles, or a missing or unreadable part; the message names it.
        UnsupportedArchitectureError: a pipeline or component without an adapter.
    """
    refuse_pickles(folder)
    index = _read_json(folder / MODEL_INDEX)
    architecture = find_architecture(str(index.get("_class_name")))
    for component in _encoders_held(architecture, index):
        _check_tokenizer(folder / tokenizer_of(component))
        _read_json(folder / component / "config.json")
        check_class(component, _class_of(index, component), architecture.text_encoders[component])
        weight_files(folder / component, ENCODER_STEM)
    config = _read_json(folder / architecture.denoiser / "config.json")
    check_class(architecture.denoiser, config.get("_class_name"), architecture.denoiser_class)
    architecture.check_config(config)
    held = {
        name: (file, entry)
        for name, (file, entry) in _denoiser_tensors(folder, architecture).items()
        if architecture.is_projection(name)
    }
    if odd := [name for name, (_, entry) in held.items() if not entry.shape]:
        raise CheckpointError(f"{folder}: expected matrices as projections, found a number in {odd[0]!r}; restore it")
    if not held:
        raise CheckpointError(
            f"{folder}: expected projections {architecture.projection.pattern} in {architecture.denoiser}, found none"
        )
    own = {f"{architecture.denoiser}.{name}": (file, name) for name, (file, _) in held.items()}
    own |= _memories(folder, architecture)
    return CheckpointInfo(
        path=folder,
        pipeline_class=str(index["_class_name"]),
        architecture=architecture.name,
        projections={f"{architecture.denoiser}.{name}": (e.shape[0], e.shape[-1]) for name, (_, e) in held.items()},
        dtype=", ".join(sorted({entry.dtype for _, entry in held.values()})),
        files={name: file for name, (file, _) in own.items()},
        stored_names={name: stored for name, (_, stored) in own.items()},
    )


def read_folder(info: CheckpointInfo) -> BaseModel:
    """Returns text encoders and projections of an inspected folder; nothing else is read.

    Raises:
        CheckpointError: a text encoder or tokenizer cannot be read, or lacks weights.
    """
    index, architecture = _read_json(info.path / MODEL_INDEX), info.adapter
    tokenizers: dict[str, PreTrainedTokenizerBase | None] = {}
    encoders = {}
    for component in _encoders_held(architecture, index):
        tokenizer = tokenizer_of(component)
        tokenizers[component] = read_tokenizer(info.path / tokenizer, _class_of(index, tokenizer))
        encoders[component] = _read_encoder(info.path / component, architecture.text_encoders[component])
    return assemble(
        architecture,
        Parts(
            tokenizers=tokenizers,
            encoders=encoders,
            denoiser_config=_read_json(info.path / architecture.denoiser / "config.json"),
            weights=_read_weights(info.path, architecture),
        ),
    )


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Returns the safetensors files of a component, sharded or not, each checked to be whole.

    Where there are both, transformers reads the single file and diffusers the shards.

    Raises:
        CheckpointError: one is missing or damaged.
    """
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    is_sharded = index.is_file() and not (stem == ENCODER_STEM and single.is_file())
    names = _shards(index) if is_sharded else [single.name]
    files = [folder / Path(name).name for name in names]
    for file in files:
        if not file.is_file():
            raise CheckpointError(
                f"expected the weights {file.parent.name}/{file.name}, found {_variant_beside(file)} ({file})"
            )
        read_header(file)
    return files


def _variant_beside(file: Path) -> str:
    """Returns what is found in place of a file that is missing, and what to do then."""
    others = sorted(other.name for other in file.parent.glob(f"{file.name.partition('.')[0]}.*.safetensors"))
    if not others:
        return "none; restore them"
    variant = others[0].split(".")[1].partition("-")[0]  # of fp16-00001-of-00002
    return (
        f"{others[0]}, a variant; load the pipeline with from_pretrained(..., variant={variant!r}) and "
        "its own dtype, and give it to the engine, or save_pretrained it as a folder without variants"
    )


def _shards(index: Path) -> list[str]:
    placed = _read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise CheckpointError(
            f"{index.parent.name}/{index.name}: expected a weight_map of names and files, found {placed!r:.80}; "
            f"restore it ({index})"
        )
    names = sorted(set(placed.values()))
    totals = {int(told[1]) for told in map(SHARD_OF.search, names) if told}
    if totals - {len(names)}:
        raise CheckpointError(
            f"{index.parent.name}/{index.name}: expected {max(totals)} files of weights, as their names say, found "
            f"{len(names)}; restore it ({index})"
        )
    return names


def read_tokenizer(folder: Path, class_name: str | None, **changes: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer in `folder`, with special tokens changed if asked.

    Raises:
        CheckpointError: it is missing or cannot be read.
        UnsupportedArchitectureError: its class is no tokenizer.
    """
    _check_tokenizer(folder)
    found = getattr(transformers, str(class_name), None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)):
        raise UnsupportedArchitectureError(f"expected a tokenizer class for {folder.name}, found {class_name}")
    try:
        with quiet_transformers():
            tokenizer = found.from_pretrained(folder, local_files_only=True, **changes)
    except Exception as error:  # damaged files make the libraries raise whatever comes
        raise CheckpointError(f"{folder}: could not read the tokenizer: {error!r}; restore it") from error
    if tokenizer.pad_token_id is None or not isinstance(tokenizer.model_max_length, (int, float)):
        raise CheckpointError(
            f"{folder}: expected a padding token and a number as model_max_length, found {tokenizer.pad_token!r} and "
            f"{tokenizer.model_max_length!r}; restore tokenizer_config.json"
        )
    return tokenizer


@contextlib.contextmanager
def quiet_transformers() -> Generator[None]:
    """Runs the block without transformers' messages and progress bars."""
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


def _encoders_held(architecture: Architecture, index: Mapping[str, Any]) -> list[str]:
    return [
        component
        for component in architecture.text_encoders
        if component not in architecture.optional or _class_of(index, component) is not None
    ]


def _class_of(index: Mapping[str, Any], component: str) -> str | None:
    entry = index.get(component)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(
            f"expected a file among {', '.join(TOKENIZER_FILES)} in {folder.name}, found none; restore it ({folder})"
        )


def _read_encoder(folder: Path, class_name: str) -> PreTrainedModel:
    try:
        with quiet_transformers():
            encoder, report = getattr(transformers, class_name).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype="auto", output_loading_info=True
            )
    except Exception as error:  # damaged files make the libraries raise whatever comes
        raise CheckpointError(f"{folder}: could not read the text encoder: {error!r}; restore it") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{folder}: the text encoder lacks {len(missing)} weights, the first {missing[0]!r}; restore them"
        )
    return encoder


def _denoiser_tensors(folder: Path, architecture: Architecture) -> dict[str, tuple[Path, StoredTensor]]:
    files = weight_files(folder / architecture.denoiser, DENOISER_STEM)
    held = {name: (file, entry) for file in files for name, entry in read_header(file).items()}
    return {name: held[name] for name in sorted(held)}


def _memories(folder: Path, architecture: Architecture) -> dict[str, tuple[Path, str]]:
    """Returns file and name there of each weight of a text encoder that an edit may change."""
    found: dict[str, tuple[Path, str]] = {}
    for component in architecture.text_encoders if architecture.has_memories else ():
        files = weight_files(folder / component, ENCODER_STEM)
        held = {plain_name(name): (file, name) for file in files for name in read_header(file)}
        found |= {f"{component}.{name}": held[name] for name in memory_names(held.__contains__)}
    return found


def _read_weights(folder: Path, architecture: Architecture) -> dict[str, Tensor]:
    by_file: dict[Path, list[str]] = {}
    for name, (file, _) in _denoiser_tensors(folder, architecture).items():
        if architecture.is_read(name):
            by_file.setdefault(file, []).append(name)
    tensors = {name: held for file, names in by_file.items() for name, held in read_tensors(file, names).items()}
    return {f"{architecture.denoiser}.{name}": held for name, held in tensors.items()}


def _read_json(file: Path) -> dict[str, Any]:
    where = f"{file.parent.name}/{file.name}"
    if not file.is_file():
        raise CheckpointError(f"expected {where} in a folder of diffusers' layout, found none; restore it ({file})")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{where}: expected JSON, found: {error}; restore it ({file})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(content).__name__}; restore it ({file})")
    return content
