"""Loading a model to be drawn with: all of it, exactly as it is stored, or not at all.

Guarantees:
    1. Never from a hub, and never a pickle.
    2. Every component that `model_index.json` names is there, its files are whole, and none of its weights is missing:
       the libraries would fill a gap with random numbers, which draw nothing and pass for forgetting.
    3. Weights keep the precision they are stored in, which is one for the whole model; none is NaN or infinite.
    4. The safety checker stays out: it blacks pictures out.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from scapre import CheckpointError
from scapre.checkpoint.folder import DENOISER_STEM, ENCODER_STEM, quiet_transformers, weight_files
from scapre.checkpoint.tensor_files import read_header, refuse_pickles

INDEX = "model_index.json"
PRECISIONS: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What weights may be stored in, as safetensors writes it."""
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that draw nothing from a text."""
_NO_WEIGHTS = ("position_ids", "num_batches_tracked")
"""Endings of tensors that count rather than weigh."""

Shapes = dict[str, tuple[int, ...]]
Pipeline = Any
"""A diffusers text-to-image pipeline. Its classes share no type that says what a call takes."""


def show_no_loading_bars() -> None:
    """Loading takes a moment; the bar that matters is the one of rendering."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def load_pipeline(folder: Path, device: str) -> Pipeline:
    """Reads a checkpoint folder for drawing.

    Raises:
        CheckpointError: A pickle, a missing or damaged component, missing or non-finite weights, or mixed precisions.
    """
    show_no_loading_bars()
    dtype = PRECISIONS[precision_of(folder)]
    models = {name: _load_model(folder / name, kind, dtype) for name, kind in _models(folder)}
    index = _read_index(folder)
    options: dict[str, Any] = {name: None for name in _LEFT_OUT if name in index}
    if "requires_safety_checker" in index or "safety_checker" in index:
        options["requires_safety_checker"] = False
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, **models, **options
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise CheckpointError(f"{folder}: could not be put together: {error}; restore the folder") from error
    return pipeline.to(device)


def precision_of(folder: Path) -> str:
    """Returns the one precision of a checkpoint's weights, after checking that each of its files is whole.

    Raises:
        CheckpointError: A pickle, a missing or damaged component, or weights in several or unknown precisions.
    """
    found: dict[str, str] = {}
    for component, kind in _models(folder):
        for file in weight_files(folder / component, _stem(kind)):
            for name, entry in read_header(file).items():
                if not name.endswith(_NO_WEIGHTS):
                    found.setdefault(entry.dtype, f"{component}.{name}")
    if len(found) != 1 or not found.keys() <= PRECISIONS.keys():
        named = ", ".join(f"{dtype} (as in {name})" for dtype, name in sorted(found.items())) or "none"
        raise CheckpointError(
            f"{folder}: expected all weights in one of {', '.join(PRECISIONS)}, found {named}; convert them to one"
        )
    return next(iter(found))


def check_alike(base: Path, candidate: Path) -> None:
    """Checks that two folders hold models of one making: the same pipeline, precision and shapes.

    Raises:
        CheckpointError: They do not, so that differences between their pictures would say nothing of an edit.
    """
    classes = [_read_index(folder).get("_class_name") for folder in (base, candidate)]
    if classes[0] != classes[1]:
        raise CheckpointError(f"{candidate}: expected the base's {classes[0]}, found {classes[1]}; name its own base")
    precisions = [precision_of(folder) for folder in (base, candidate)]
    if precisions[0] != precisions[1]:
        raise CheckpointError(
            f"{candidate}: expected weights in the base's precision {precisions[0]}, found {precisions[1]}; give both "
            "in the precision that will be used"
        )
    before, after = (_shapes(folder) for folder in (base, candidate))
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            raise CheckpointError(
                f"{candidate}: expected the base's shape {before[name]} of {name}, found {after[name]}; name the base "
                "that this model was made from"
            )


def _models(folder: Path) -> Iterator[tuple[str, type[torch.nn.Module]]]:
    """Yields name and class of each component with weights.

    Raises:
        CheckpointError: The folder is no checkpoint, or holds a pickle, or lacks a component.
    """
    index = _read_index(folder)
    refuse_pickles(folder)
    for name, entry in sorted(index.items()):
        if name in _LEFT_OUT or not (isinstance(entry, list) and len(entry) == 2) or entry[1] is None:
            continue
        library = {"diffusers": diffusers, "transformers": transformers}.get(str(entry[0]))
        kind = getattr(library, str(entry[1]), None)
        if not isinstance(kind, type):
            raise CheckpointError(
                f"{folder}: expected {name} to be a class of diffusers or transformers, found {entry[0]}.{entry[1]}; "
                "only what those libraries ship is run"
            )
        if not (folder / name).is_dir():
            raise CheckpointError(
                f"{folder}: expected the component {name}, which {INDEX} names, found none; restore it"
            )
        if issubclass(kind, torch.nn.Module):
            yield name, kind


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return dict(content)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"expected {INDEX} in {folder}, as in a folder of diffusers' layout, found {error}; name such a folder"
        ) from error


def _stem(kind: type[torch.nn.Module]) -> str:
    return ENCODER_STEM if issubclass(kind, transformers.PreTrainedModel) else DENOISER_STEM


def _shapes(folder: Path) -> Shapes:
    return {
        f"{component}.{name}": entry.shape
        for component, kind in _models(folder)
        for file in weight_files(folder / component, _stem(kind))
        for name, entry in read_header(file).items()
    }


def _load_model(folder: Path, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    options["dtype" if issubclass(kind, transformers.PreTrainedModel) else "torch_dtype"] = dtype
    try:
        with quiet_transformers():
            model, report = kind.from_pretrained(folder, **options)
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder}: could not read the component: {error}; restore it") from error
    if lacking := sorted(str(name) for name in report["missing_keys"]):
        raise CheckpointError(
            f"{folder}: expected every weight of {kind.__name__}, found {len(lacking)} missing, the first "
            f"{lacking[0]!r}; restore them"
        )
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise CheckpointError(f"{folder}: expected finite weights, found NaN or infinity in {name}; make it anew")
    return model.eval()
