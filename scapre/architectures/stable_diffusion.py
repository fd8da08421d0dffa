"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, UNet2DConditionModel, `attn2.to_k` and `attn2.to_v`."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scapre.architectures.base import BaseModel
from scapre.embeddings import TextStack
from scapre.errors import UnsupportedArchitectureError

NAME = "stable-diffusion"
PIPELINE_CLASSES = frozenset({"StableDiffusionPipeline"})
TEXT_ENCODER_CLASS = "CLIPTextModel"
DENOISER_CLASS = "UNet2DConditionModel"
DENOISER_FOLDER = "unet"
_PROJECTION = re.compile(r"attn2\.to_[kv]\.weight$")  # attn1 is attention among image positions: no text enters it


def is_projection(parameter: str) -> bool:
    """Returns whether a UNet parameter is a key or value projection that reads text."""
    return bool(_PROJECTION.search(parameter))


def read_pipeline(pipeline: Any) -> BaseModel:
    """Returns text encoder and live projections of a loaded pipeline.

    Raises:
        UnsupportedArchitectureError: a component is of another class; named in the message.
    """
    check_class("text encoder", type(pipeline.text_encoder).__name__, TEXT_ENCODER_CLASS)
    check_class("denoiser", type(pipeline.unet).__name__, DENOISER_CLASS)
    check_denoiser_config(dict(pipeline.unet.config))
    wrapped = [
        name
        for name, module in pipeline.unet.named_modules()
        if re.search(r"attn2\.to_[kv]$", name) and not isinstance(module, nn.Linear)
    ]
    if wrapped:
        raise UnsupportedArchitectureError(
            f"expected plain linear projections, found {len(wrapped)} wrapped ones, the first {wrapped[0]!r}; "
            "unload or fuse adapters first (pipeline.unload_lora_weights() or pipeline.fuse_lora())"
        )
    live = {f"{DENOISER_FOLDER}.{name}": p for name, p in pipeline.unet.named_parameters() if is_projection(name)}
    return assemble(pipeline.tokenizer, pipeline.text_encoder, live)


def assemble(
    tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, projections: Mapping[str, Tensor]
) -> BaseModel:
    """Returns the base model, its projections checked and in canonical order."""
    width = int(encoder.config.hidden_size)
    if not projections:
        raise UnsupportedArchitectureError("expected cross-attention projections attn2.to_k and attn2.to_v, found none")
    if odd := [name for name, weight in projections.items() if weight.ndim != 2 or weight.shape[1] != width]:
        raise UnsupportedArchitectureError(
            f"expected projections that read {width} text features, "
            f"found {tuple(projections[odd[0]].shape)} in {odd[0]!r}"
        )
    if absent := [name for name, weight in projections.items() if weight.is_meta]:
        raise UnsupportedArchitectureError(
            f"expected weights in memory, found {absent[0]!r} off-loaded; load the pipeline without off-loading"
        )
    return BaseModel(NAME, TextStack(tokenizer, encoder), {name: projections[name] for name in sorted(projections)})


def check_class(component: str, found: str | None, expected: str) -> None:
    """Raises `UnsupportedArchitectureError` unless the component is of the expected class."""
    if found != expected:
        raise UnsupportedArchitectureError(
            f"expected {expected} as {component}, found {found}; only Stable Diffusion 1.x and 2.x are supported so far"
        )


def check_denoiser_config(config: Mapping[str, Any]) -> None:
    """Raises `UnsupportedArchitectureError` when text reaches the projections by another way than straight."""
    for key in ("encoder_hid_dim", "encoder_hid_dim_type", "addition_embed_type"):
        if config.get(key) is not None:
            raise UnsupportedArchitectureError(
                f"expected a UNet without {key}, found {config[key]!r}; no adapter for it yet"
            )
