"""Drift: how far the candidate's weights have moved from the base's, and where.

Guarantees:
    1. It is read off the two models themselves; nobody's word about the edit is used.
    2. Every tensor of every part is compared; one that only one model has is named, never passed over.
    3. Reported beside the verdict: weights say how much was changed, not whether a concept is gone.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch

from validation.judgement import Drift, PartDrift, TensorDrift
from validation.rendering import Pipeline

_READS_PROMPT = re.compile(r"\b(attn2|add_[kv]_proj|context_embedder|caption_projection)\b")
"""The layers through which a denoiser reads its prompt, as diffusers names them: cross-attention, or what feeds it."""
_LAST_MAP = re.compile(r"^(text_encoder\w*)\.(?:text_model\.)?encoder\.layers\.(\d+)\.mlp\.fc2\.weight$")
"""The last map of each layer of a CLIP text encoder."""
_READ_LAYERS = {"StableDiffusionPipeline": 1, "StableDiffusionXLPipeline": 2}
"""From which of a text encoder's layers, counted from the last, pipelines take what the denoiser reads."""
_LARGEST_NAMED = 20


def weight_drift(base: Pipeline, candidate: Pipeline) -> Drift:
    """Returns the drift of all weights, in float64; a safety checker never draws and is left out."""
    parts, changed, unmatched = [], [], []
    modules = [_modules(pipeline) for pipeline in (base, candidate)]
    for part in sorted(modules[0].keys() | modules[1].keys()):
        before, after = (_tensors(own.get(part)) for own in modules)
        unmatched += [f"{part}.{name}" for name in sorted(before.keys() ^ after.keys())]
        moved = length = 0.0
        own = 0
        for name in sorted(before.keys() & after.keys()):
            if before[name].shape != after[name].shape:
                unmatched.append(f"{part}.{name}")
                continue
            norm, distance = _norms(before[name], after[name])
            length += norm**2
            if distance is not None:
                own += 1
                moved += distance**2
                changed.append(TensorDrift(f"{part}.{name}", _relative(distance, norm)))
        parts.append(PartDrift(part, len(before), own, _relative(math.sqrt(moved), math.sqrt(length))))
    changed.sort(key=lambda tensor: -(math.inf if tensor.relative is None else tensor.relative))
    return Drift(
        parts=tuple(parts),
        largest=tuple(changed[:_LARGEST_NAMED]),
        outside=tuple(sorted(tensor.name for tensor in changed if not _reads_prompt(base, tensor.name))),
        unmatched=tuple(unmatched),
    )


def _reads_prompt(pipeline: Pipeline, name: str) -> bool:
    """Returns whether a tensor is one through which the denoiser reads its prompt, or ends what it reads."""
    read, found = _READ_LAYERS.get(type(pipeline).__name__), _LAST_MAP.match(name)
    if read is None or found is None:
        return bool(_READS_PROMPT.search(name))
    layers = pipeline.components[found[1]].config.num_hidden_layers
    return int(found[2]) == layers - read


def _modules(pipeline: Pipeline) -> dict[str, torch.nn.Module]:
    parts: Iterator[tuple[str, Any]] = iter(pipeline.components.items())
    return {name: part for name, part in parts if isinstance(part, torch.nn.Module) and name != "safety_checker"}


def _tensors(module: torch.nn.Module | None) -> dict[str, torch.Tensor]:
    return {} if module is None else module.state_dict()


def _norms(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float | None]:
    """Returns the norm before, and the distance, which is None between equal tensors."""
    old, new = before.detach().double(), after.detach().to(before.device).double()
    norm = float(torch.linalg.vector_norm(old))
    return norm, None if torch.equal(old, new) else float(torch.linalg.vector_norm(new - old))


def _relative(distance: float, norm: float) -> float | None:
    """Returns the distance as a share of the norm; None where there is no such number."""
    share = distance / norm if norm else (0.0 if distance == 0 else math.inf)
    return share if math.isfinite(share) else None
