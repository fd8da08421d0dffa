"""Checkpoints, whatever their layout: looked at first, read in part."""

import os
from pathlib import Path
from typing import Any

from scapre.architectures import BaseModel, read_pipeline
from scapre.checkpoint.folder import inspect_folder, read_folder
from scapre.checkpoint.info import CheckpointInfo
from scapre.errors import CheckpointError


def inspect_checkpoint(path: Path | str) -> CheckpointInfo:
    """Returns what the checkpoint at `path` is.

    Raises:
        CheckpointError: pickles, or a missing or unreadable part; the message names it.
        UnsupportedArchitectureError: a pipeline or component without an adapter.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"expected a folder in diffusers' layout, found nothing of the kind at {folder}")
    return inspect_folder(folder)


def read_base(pipeline_or_path: Any) -> BaseModel:
    """Returns what the engine needs of a loaded pipeline, or of files: text encoders and projections only."""
    if not isinstance(pipeline_or_path, (str, os.PathLike)):
        return read_pipeline(pipeline_or_path)
    return read_folder(inspect_checkpoint(Path(pipeline_or_path)))


def base_digest(pipeline_or_path: Any) -> str:
    """Returns the digest of text encoders and projections."""
    return read_base(pipeline_or_path).digest
