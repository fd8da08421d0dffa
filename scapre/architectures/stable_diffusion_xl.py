"""Stable Diffusion XL: two CLIP encoders side by side, a UNet, and its `attn2.to_k` and `attn2.to_v`.

Edited: key and value projections of every cross-attention block.
Input: the hidden states before the last layer of both encoders, without their final norm, joined along the width. The
unconditional prompt is all zeros in most checkpoints, which no weight turns into anything but zeros.
Slots: attention is causal, so the last token of the name and all after it, padding included.
Not covered: the pooled output of the second encoder, which enters by `add_embedding` together with the time step.
"""

from scapre.architectures.base import Architecture, Parts
from scapre.architectures.stable_diffusion import CLIP_SKIP, CROSS_ATTENTION, check_unet
from scapre.text import SideBySide, TextStack

PENULTIMATE = -2


def penultimate(parts: Parts, component: str) -> TextStack:
    """Returns the CLIP encoder `component`, read before its last layer."""
    return TextStack(parts.tokenizers[component], parts.encoders[component], component, hidden_layer=PENULTIMATE)


def _read_text(parts: Parts) -> SideBySide:
    return SideBySide((penultimate(parts, "text_encoder"), penultimate(parts, "text_encoder_2")))


ARCHITECTURE = Architecture(
    name="stable-diffusion-xl",
    pipeline_classes=frozenset({"StableDiffusionXLPipeline"}),
    text_encoders={"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
    denoiser="unet",
    denoiser_class="UNet2DConditionModel",
    projection=CROSS_ATTENTION,
    read_text=_read_text,
    check_config=lambda config: check_unet(config, addition_embed_type="text_time"),
    has_memories=True,
    not_covered_by_memories=(
        CLIP_SKIP,
        "the pooled output of text_encoder_2, which enters by add_embedding, changes as well, but is led nowhere",
    ),
    not_covered=("the pooled output of text_encoder_2 enters by add_embedding",),
)
