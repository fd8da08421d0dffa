"""Stable Diffusion 3 and 3.5: two CLIP encoders side by side, then T5, and the transformer's `context_embedder`.

Edited: `context_embedder`, the one linear map all token features pass. The blocks' `add_k_proj` and `add_v_proj` cannot
be edited in closed form: what they read is normalized by a layer modulated with time step and pooled text, and from the
second block on has been mixed with the image.
Input: the CLIP encoders' hidden states before their last layer, joined and filled up with zeros to T5's width, then
T5's output. T5 gets no attention mask, and the transformer reads its padding.
Slots: of the CLIP run the last token of the name and all after it; of the T5 run every token and padding, since T5's
attention is not causal.
Not covered: the pooled outputs of both CLIP encoders, which enter by `time_text_embed`.
"""

import re
from collections.abc import Mapping
from typing import Any

from scapre.architectures.base import Architecture, Parts
from scapre.architectures.stable_diffusion_xl import penultimate
from scapre.errors import UnsupportedArchitectureError
from scapre.text import OneAfterAnother, SideBySide, TextStack

T5_TOKENS = 256
"""Tokens the pipeline gives T5 unless told otherwise."""
CONTEXT_EMBEDDER = re.compile(r"^context_embedder$")
PADDING_GRID = 16


def unmasked_t5(parts: Parts, component: str, tokens: int) -> TextStack:
    """Returns a T5 encoder whose padding is read as well, as many slots of it as tell its course."""
    return TextStack(
        parts.tokenizers[component],
        parts.encoders[component],
        component,
        token_limit=tokens,
        lead=0,
        is_causal=False,
        padding_grid=PADDING_GRID,
    )


def _read_text(parts: Parts) -> OneAfterAnother | SideBySide:
    width = int(parts.denoiser_config["joint_attention_dim"])
    clip = SideBySide((penultimate(parts, "text_encoder"), penultimate(parts, "text_encoder_2")), width)
    if "text_encoder_3" not in parts.encoders:
        return clip  # the pipeline then reads zeros in T5's place
    return OneAfterAnother((clip, unmasked_t5(parts, "text_encoder_3", T5_TOKENS)))


def _check_config(config: Mapping[str, Any]) -> None:
    if not config.get("joint_attention_dim"):
        raise UnsupportedArchitectureError("expected joint_attention_dim in the transformer's config, found none")


ARCHITECTURE = Architecture(
    name="stable-diffusion-3",
    pipeline_classes=frozenset({"StableDiffusion3Pipeline"}),
    text_encoders={
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    denoiser="transformer",
    denoiser_class="SD3Transformer2DModel",
    projection=CONTEXT_EMBEDDER,
    read_text=_read_text,
    check_config=_check_config,
    optional=frozenset({"text_encoder_3"}),
    not_covered=("the pooled outputs of text_encoder and text_encoder_2 enter by time_text_embed",),
)
