"""Checkpoints as folders in diffusers' layout: looked at first, read in part, merged without side effects.

Guarantees:
    1. A folder that cannot be handled is refused by name before anything is read in full or written.
    2. Pickles are never opened.
    3. `merge` changes the bytes of edited tensors only; headers, order and other tensors stay as they are.
    4. A merge is complete or absent: it is built beside `out`, flushed to disk and renamed.
"""

import contextlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging

from scapre.architectures import BaseModel, check_pipeline_class, read_pipeline
from scapre.architectures import stable_diffusion as sd
from scapre.architectures.base import plain_name
from scapre.edit import Edit
from scapre.errors import BaseMismatchError, CheckpointError

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
_LENGTH = struct.Struct("<Q")  # a safetensors file starts with the length of its header


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint is, read from its configuration and file headers."""

    path: Path
    pipeline_class: str
    architecture: str
    text_width: int
    """d_in of the projections."""
    context_tokens: int
    projections: dict[str, tuple[int, int]]
    """Shape of each cross-attention projection."""
    dtype: str
    files: dict[str, Path]
    """File that holds each projection."""

    @property
    def row_count(self) -> int:
        """Number of output rows an edit may touch."""
        return sum(shape[0] for shape in self.projections.values())


def inspect_checkpoint(path: Path | str) -> CheckpointInfo:
    """Returns what the checkpoint at `path` is.

    Raises:
        CheckpointError: pickles, or a missing or unreadable part; the message names it.
        UnsupportedArchitectureError: a pipeline or component without an adapter.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"expected a folder in diffusers' layout, found nothing of the kind at {folder}")
    if pickles := sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in PICKLE_SUFFIXES):
        raise CheckpointError(
            f"{folder}: found the pickle {pickles[0]} ({len(pickles)} in all), and opening a pickle can run any code; "
            "convert the weights to safetensors and remove it"
        )
    pipeline_class = str(_read_json(folder / "model_index.json").get("_class_name"))
    check_pipeline_class(pipeline_class)
    tokenizer = folder / "tokenizer"
    if not ((tokenizer / "tokenizer.json").is_file() or (tokenizer / "vocab.json").is_file()):
        raise CheckpointError(
            f"{folder}: expected tokenizer/tokenizer.json or tokenizer/vocab.json, found neither; restore it"
        )
    text_config = _read_json(folder / "text_encoder" / "config.json")
    sd.check_class("text encoder", next(iter(text_config.get("architectures") or []), None), sd.TEXT_ENCODER_CLASS)
    denoiser_config = _read_json(folder / sd.DENOISER_FOLDER / "config.json")
    sd.check_class("denoiser", denoiser_config.get("_class_name"), sd.DENOISER_CLASS)
    sd.check_denoiser_config(denoiser_config)
    _weight_files(folder / "text_encoder", "model")
    shapes, dtypes, files = {}, set(), {}
    for file in _weight_files(folder / sd.DENOISER_FOLDER, "diffusion_pytorch_model"):
        for name, entry in read_header(file).items():
            if sd.is_projection(name):
                key = f"{sd.DENOISER_FOLDER}.{name}"
                shapes[key], files[key] = tuple(entry["shape"]), file
                dtypes.add(entry["dtype"])
    if not shapes:
        raise CheckpointError(f"{folder}: expected cross-attention projections attn2.to_k and attn2.to_v, found none")
    return CheckpointInfo(
        path=folder,
        pipeline_class=pipeline_class,
        architecture=sd.NAME,
        text_width=int(text_config.get("hidden_size", 512)),
        context_tokens=int(text_config.get("max_position_embeddings", 77)),
        projections={name: shapes[name] for name in sorted(shapes)},
        dtype=", ".join(sorted(dtypes)),
        files={name: files[name] for name in sorted(files)},
    )


def read_base(pipeline_or_path: Any) -> BaseModel:
    """Returns what the engine needs of a loaded pipeline, or of a folder: its text encoder and projections only."""
    if not isinstance(pipeline_or_path, (str, os.PathLike)):
        return read_pipeline(pipeline_or_path)
    info = inspect_checkpoint(Path(pipeline_or_path))
    try:
        with _quiet_transformers():
            tokenizer = CLIPTokenizer.from_pretrained(info.path / "tokenizer", local_files_only=True)
            encoder = CLIPTextModel.from_pretrained(
                info.path / "text_encoder",
                local_files_only=True,
                use_safetensors=True,
                dtype="auto",
            )
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{info.path}: could not read the text encoder or tokenizer: {error}") from error
    stored = {plain_name(n) for file in _weight_files(info.path / "text_encoder", "model") for n in read_header(file)}
    if missing := sorted(set(map(plain_name, encoder.state_dict())) - stored):
        raise CheckpointError(f"{info.path}: the text encoder lacks {len(missing)} weights, the first {missing[0]!r}")
    return sd.assemble(tokenizer, encoder, _read_projections(info))


def base_digest(pipeline_or_path: Any) -> str:
    """Returns the digest of text encoder and cross-attention projections."""
    return read_base(pipeline_or_path).digest


def merge(edit: Edit, checkpoint: Path | str, out: Path | str) -> Path:
    """Writes a full copy of `checkpoint` to `out` in which only the edited tensors differ; returns `out`.

    Files without edited tensors are hard-linked where the file system allows it, copied otherwise.

    Raises:
        BaseMismatchError: the checkpoint is not the base of the edit.
        CheckpointError: `out` exists, or cannot be written; nothing is left behind.
    """
    source, target = Path(checkpoint).resolve(), Path(out).absolute()
    if target.exists():
        raise CheckpointError(f"expected a new folder to merge into, found {target} there already; choose another name")
    if target.is_relative_to(source):
        raise CheckpointError(f"expected a folder outside of the checkpoint, found {target}; choose another place")
    info = inspect_checkpoint(source)
    if (found := read_base(source).digest) != edit.base_digest:
        raise BaseMismatchError(
            f"expected a checkpoint with digest {edit.base_digest}, found {found}; merge into its own base"
        )
    building: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        building.chmod(0o755)
        _copy_tree(info, edit, building)
        if target.exists():
            raise CheckpointError(f"{target} appeared while merging; choose another name")
        building.rename(target)
        _flush(target.parent)
    except OSError as error:
        raise CheckpointError(f"could not write {target}: {error}; free space or choose another place") from error
    finally:
        if building is not None and building.exists():
            shutil.rmtree(building, ignore_errors=True)
    return target


def read_header(file: Path) -> dict[str, Any]:
    """Returns name → dtype, shape and data_offsets of a safetensors file, after it was checked to be whole."""
    try:
        with safe_open(file, framework="pt"):  # refuses truncated files and bad headers
            pass
        with file.open("rb") as opened:
            header = json.loads(opened.read(_LENGTH.unpack(opened.read(_LENGTH.size))[0]))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{file}: expected a readable safetensors file, found: {error}; fetch it again"
        ) from error
    header.pop("__metadata__", None)
    return header


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


def _weight_files(folder: Path, stem: str) -> list[Path]:
    index = folder / f"{stem}.safetensors.index.json"
    names = (
        sorted(set(_read_json(index).get("weight_map", {}).values())) if index.is_file() else [f"{stem}.safetensors"]
    )
    files = [folder / Path(name).name for name in names]
    for file in files:
        if not file.is_file():
            raise CheckpointError(
                f"expected the weights {file.parent.name}/{file.name}, found none; restore them ({file})"
            )
        read_header(file)
    return files


def _read_projections(info: CheckpointInfo) -> dict[str, Tensor]:
    tensors = {}
    for file in sorted(set(info.files.values())):
        with safe_open(file, framework="pt") as opened:  # memory-mapped: the rest of the UNet is not read
            for name in (name for name, holder in info.files.items() if holder == file):
                tensors[name] = opened.get_tensor(name.removeprefix(f"{sd.DENOISER_FOLDER}."))
    return tensors


def _copy_tree(info: CheckpointInfo, edit: Edit, building: Path) -> None:
    changed = {name for name, change in edit.changes.items() if bool(change.any())}
    rewritten = {info.files[name] for name in changed}
    for original in sorted(info.path.rglob("*")):
        copy = building / original.relative_to(info.path)
        if original.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if original in rewritten:
            shutil.copyfile(original, copy)
            _patch(copy, edit, [name for name in changed if info.files[name] == original])
        else:
            _link_or_copy(original.resolve(), copy)
    for folder in sorted((p for p in building.rglob("*") if p.is_dir()), reverse=True):
        _flush(folder)
    _flush(building)


def _patch(file: Path, edit: Edit, names: Iterable[str]) -> None:
    header = read_header(file)
    with file.open("r+b") as opened:
        data_start = _LENGTH.size + _LENGTH.unpack(opened.read(_LENGTH.size))[0]
        for name in sorted(names):
            start, end = header[name.removeprefix(f"{sd.DENOISER_FOLDER}.")]["data_offsets"]
            change = edit.changes[name].contiguous().reshape(-1).view(torch.uint8)
            opened.seek(data_start + start)
            content = torch.frombuffer(bytearray(opened.read(end - start)), dtype=torch.uint8)
            opened.seek(data_start + start)
            opened.write((content ^ change).numpy().tobytes())
        opened.flush()
        os.fsync(opened.fileno())


def _link_or_copy(original: Path, copy: Path) -> None:
    try:
        os.link(original, copy)
    except OSError:  # another device, or a file system without links
        shutil.copyfile(original, copy)
        _flush(copy)


def _flush(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def _quiet_transformers() -> Generator[None]:
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()
