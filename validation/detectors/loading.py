"""Reading models and their digests from folders; never from a hub, never a pickle."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from validation.errors import DetectorError

BATCH = 256
"""Pictures that a detector sees at once."""


def load_model(kind: Any, folder: Path) -> Any:
    """Reads a model; one with weights missing would be filled up at random, and judge at random."""
    if not folder.is_dir() or not any(folder.glob("*.safetensors")):
        raise DetectorError(
            f"expected a folder with weights as safetensors, found none at {folder}; a pickle is not opened, because "
            "reading one can run code: convert it"
        )
    try:
        model, loading = kind.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DetectorError(f"expected a transformers model in {folder}, found: {error}; save it again") from error
    if missing := sorted(loading["missing_keys"]):
        raise DetectorError(f"expected all weights in {folder}, found none for {missing[:5]}; save the model again")
    return model


def load_processor(folder: Path) -> Any:
    """Reads how a model wants its pictures prepared."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    except (OSError, ValueError) as error:
        raise DetectorError(f"expected an image processor in {folder}, found {error}; save one beside it") from error


def folder_digest(folder: Path, head: str) -> str:
    """Returns SHA-256 over a folder's weights and settings, and over what of the model is used."""
    total = hashlib.sha256(head.encode())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
