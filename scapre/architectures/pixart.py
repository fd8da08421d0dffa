"""PixArt-Sigma: T5, a caption projection, and the transformer's `attn2.to_k` and `attn2.to_v`.

Edited: key and value projections of every cross-attention block.
Input: T5's output after `caption_projection` (two linear maps with a GELU between), which is left as it is.
Slots: every token, since T5's attention is not causal; no padding, which the transformer masks.
Text enters nowhere else.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scapre.architectures.base import Architecture, Parts
from scapre.architectures.stable_diffusion import CROSS_ATTENTION
from scapre.errors import CheckpointError, UnsupportedArchitectureError
from scapre.text import Projected, TextStack

T5_TOKENS = 300
"""Tokens the pipeline gives T5 unless told otherwise."""
DENOISER = "transformer"
CLEAN_UP = (
    "names with digits, signs or other scripts: the pipeline rewrites captions where bs4 and ftfy are installed, "
    "unless it is told clean_caption=False"
)
"""What is not imitated."""


def caption_projection(channels: int, width: int) -> nn.Module:
    """Returns the module text passes first, without weights."""
    from diffusers.models.embeddings import PixArtAlphaTextProjection  # takes seconds to import

    with torch.device("meta"):  # random weights, which are never used, would change what the caller draws next
        return PixArtAlphaTextProjection(in_features=channels, hidden_size=width)


def inner_width(config: Mapping[str, Any]) -> int:
    """Returns the width of the transformer's blocks.

    Raises:
        CheckpointError: the configuration does not say it.
    """
    heads, width = config.get("num_attention_heads"), config.get("attention_head_dim")
    if not (isinstance(heads, int) and isinstance(width, int) and min(heads, width) > 0):
        raise CheckpointError(
            f"expected whole numbers num_attention_heads and attention_head_dim in {DENOISER}/config.json, found "
            f"{heads!r} and {width!r}; restore it"
        )
    return heads * width


def filled(modules: Mapping[str, nn.Module], weights: Mapping[str, Tensor]) -> nn.Module:
    """Returns the modules one after another, holding the denoiser's own weights rather than copies.

    Raises:
        CheckpointError: the denoiser lacks one of them, or holds it in another shape.
    """
    chain = nn.Sequential(OrderedDict(modules))
    named: dict[str, Tensor] = {}
    for name, expected in chain.state_dict().items():
        held = weights.get(f"{DENOISER}.{name}")
        if held is None or held.shape != expected.shape:
            found = "none" if held is None else f"shape {tuple(held.shape)}"
            raise CheckpointError(
                f"expected the weight {DENOISER}.{name} of shape {tuple(expected.shape)}, found {found}; restore it"
            )
        named[name] = held.detach()
    chain.requires_grad_(False)  # of parameters of its own around the denoiser's weights, which stay as they are
    chain.load_state_dict(named, assign=True)
    return chain.eval()


def _read_text(parts: Parts) -> Projected:
    t5 = TextStack(
        parts.tokenizers["text_encoder"],
        parts.encoders["text_encoder"],
        token_limit=T5_TOKENS,
        lead=0,
        is_causal=False,
        masks_padding=True,
        lowers_case=True,
    )
    width = inner_width(parts.denoiser_config)
    modules = {"caption_projection": caption_projection(t5.width, width)}
    return Projected(t5, filled(modules, parts.weights), DENOISER, width)


def _check_config(config: Mapping[str, Any]) -> None:
    if not config.get("caption_channels"):
        raise UnsupportedArchitectureError("expected a transformer with caption_channels, found none; no adapter yet")


ARCHITECTURE = Architecture(
    name="pixart-sigma",
    pipeline_classes=frozenset({"PixArtSigmaPipeline"}),
    text_encoders={"text_encoder": "T5EncoderModel"},
    denoiser=DENOISER,
    denoiser_class="PixArtTransformer2DModel",
    projection=CROSS_ATTENTION,
    read_text=_read_text,
    check_config=_check_config,
    passed_before=("caption_projection",),
    not_covered=(CLEAN_UP,),
)
