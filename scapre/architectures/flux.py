"""FLUX.1: T5 and the transformer's `context_embedder`.

Edited: `context_embedder`, the one linear map all token features pass. The blocks' `add_k_proj` and `add_v_proj` cannot
be edited in closed form: what they read is normalized by a layer modulated with time step, guidance and pooled text,
and from the second block on has been mixed with the image.
Input: T5's output. T5 gets no attention mask, and the transformer reads its padding.
Slots: every token and padding, since T5's attention is not causal.
Not covered: the pooled output of the CLIP encoder, which enters by `time_text_embed`.
"""

from scapre.architectures.base import Architecture, Parts
from scapre.architectures.stable_diffusion_3 import CONTEXT_EMBEDDER, unmasked_t5
from scapre.text import TextStack

T5_TOKENS = 512
"""Tokens the pipeline gives T5 unless told otherwise."""


def _read_text(parts: Parts) -> TextStack:
    return unmasked_t5(parts, "text_encoder_2", T5_TOKENS)


ARCHITECTURE = Architecture(
    name="flux",
    pipeline_classes=frozenset({"FluxPipeline"}),
    text_encoders={"text_encoder_2": "T5EncoderModel"},
    denoiser="transformer",
    denoiser_class="FluxTransformer2DModel",
    projection=CONTEXT_EMBEDDER,
    read_text=_read_text,
    check_config=lambda _: None,
    not_covered=("the pooled output of text_encoder enters by time_text_embed",),
)
