"""Checkpoints, whatever their layout: looked at first, read in part."""

import os
from pathlib import Path
from typing import Any

from scapre.architectures import BaseModel, alone_with, read_pipeline
from scapre.checkpoint.folder import inspect_folder, read_folder
from scapre.checkpoint.info import CheckpointInfo
from scapre.checkpoint.single_file import SingleFile, inspect_single_file, read_single_file
from scapre.errors import CheckpointError


def inspect_checkpoint(checkpoint: Path | str | SingleFile) -> CheckpointInfo:
    """Returns what a checkpoint is: a folder in diffusers' layout, or a single safetensors file.

    Raises:
        CheckpointError: pickles, or a missing or unreadable part; the message names it.
        UnsupportedArchitectureError: a pipeline or component without an adapter.
    """
    path = checkpoint.path if isinstance(checkpoint, SingleFile) else Path(checkpoint)
    if path.is_dir():
        return inspect_folder(path)
    if path.is_file():
        return inspect_single_file(path)
    raise CheckpointError(
        f"expected a folder in diffusers' layout or a safetensors file, found nothing at {path}; "
        "what is on a hub must be downloaded first"
    )


def read_base(pipeline_or_path: Any) -> BaseModel:
    """Returns what the engine needs of a loaded pipeline, or of files: text encoders and projections only."""
    if not isinstance(pipeline_or_path, (str, os.PathLike, SingleFile)):
        return read_pipeline(pipeline_or_path)
    tokenizer = pipeline_or_path.tokenizer if isinstance(pipeline_or_path, SingleFile) else None
    return read_inspected(inspect_checkpoint(pipeline_or_path), tokenizer)


def read_inspected(info: CheckpointInfo, tokenizer: Path | None = None) -> BaseModel:
    """Returns text encoders and projections of a checkpoint that `inspect_checkpoint` looked at."""
    return read_folder(info) if info.path.is_dir() else read_single_file(info, tokenizer)


def base_digest(pipeline_or_path: Any) -> str:
    """Returns the digest of text encoders and projections."""
    with alone_with(pipeline_or_path):
        return read_base(pipeline_or_path).weights.digest
