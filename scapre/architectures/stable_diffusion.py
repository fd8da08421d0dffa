"""Stable Diffusion 1.x and 2.x: one CLIP encoder, a UNet, and its `attn2.to_k` and `attn2.to_v`.

Edited: key and value projections of every cross-attention block. `attn1` is attention among image positions.
Input: the encoder's output, as it is.
Slots: attention is causal, so the last token of the name and all after it, padding included.
Text enters nowhere else.
"""

import re
from collections.abc import Mapping
from typing import Any

from scapre.architectures.base import Architecture, Parts
from scapre.errors import UnsupportedArchitectureError
from scapre.text import TextStack

CROSS_ATTENTION = re.compile(r"\battn2\.to_[kv]$")


IP_ADAPTER = "ip_image_proj"
"""What a UNet says that was given one, by which pictures draw concepts and no text."""
CLIP_SKIP = "clip_skip reads the text encoder before the layer that is edited"
"""What an edit of the memory does not reach."""


def check_unet(config: Mapping[str, Any], *, addition_embed_type: str | None) -> None:
    """Raises `UnsupportedArchitectureError` unless text goes straight to the projections of this UNet."""
    expected = {"encoder_hid_dim": None, "encoder_hid_dim_type": None, "addition_embed_type": addition_embed_type}
    for key, value in expected.items():
        if (found := config.get(key)) != value:
            advice = (
                "take the IP-Adapter off by unload_ip_adapter()" if found == IP_ADAPTER else "no adapter for it yet"
            )
            raise UnsupportedArchitectureError(f"expected a UNet with {key} {value!r}, found {found!r}; {advice}")


def _read_text(parts: Parts) -> TextStack:
    return TextStack(parts.tokenizers["text_encoder"], parts.encoders["text_encoder"])


ARCHITECTURE = Architecture(
    name="stable-diffusion",
    pipeline_classes=frozenset({"StableDiffusionPipeline"}),
    text_encoders={"text_encoder": "CLIPTextModel"},
    denoiser="unet",
    denoiser_class="UNet2DConditionModel",
    projection=CROSS_ATTENTION,
    read_text=_read_text,
    check_config=lambda config: check_unet(config, addition_embed_type=None),
    has_memories=True,
    not_covered_by_memories=(CLIP_SKIP,),
)
