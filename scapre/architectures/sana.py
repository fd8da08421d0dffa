"""Sana: Gemma 2 with an instruction before every prompt, a caption projection and norm, and `attn2.to_k`, `attn2.to_v`.

Edited: key and value projections of every cross-attention block.
Input: Gemma's output after `caption_projection` and `caption_norm`, which are left as they are. The pipeline writes an
instruction before the prompt and hands on the first token and what follows the instruction; the unconditional prompt
has none.
Slots: the last token of the name and all after it, since Gemma's attention is causal; no padding, which is masked.
Text enters nowhere else.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from scapre.architectures.base import Architecture, Parts
from scapre.architectures.pixart import DENOISER, caption_projection, filled, inner_width
from scapre.architectures.stable_diffusion import CROSS_ATTENTION
from scapre.slots import EncodedPrompt, shifted
from scapre.text import Projected, TextStack

GEMMA_TOKENS = 300
"""Tokens the pipeline gives Gemma after the instruction unless told otherwise."""
NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class InstructedText(TextStack):
    """Gemma as Sana reads it.

    Of the instruction's n tokens the first and the last are handed on, so slot 1 is token n − 1. That last one is a
    lone space, which a word after it takes in: slot 1 may be the first word.
    """

    instruction: str = ""

    @cached_property
    def _cut(self) -> int:
        """How many tokens of the instruction are not handed on."""
        return max(self._count_tokens(self.instruction) - 2, 0) if self.instruction else 0

    def name_ends(self, text_and_name: str) -> list[int]:
        """Returns the slot of the last token of `text_and_name`."""
        return [self._count_tokens(self.instruction + self._written(text_and_name)) - 1 - self._cut]

    def has_room_for(self, text: str) -> bool:
        """Returns whether `text` fits behind the instruction, so that nothing of it is cut."""
        return self._count_tokens(self.instruction + self._written(text)) <= self.context_tokens + self._cut

    def encode(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Returns the features of each prompt; the empty one has a second run, as the unconditional prompt."""
        texts = [self.instruction + self._written(prompt) for prompt in prompts]
        encoded = [
            self._kept(features[[0, *range(self._cut + 1, len(features))]], end - self._cut)
            for features, end in self._read(texts, self.context_tokens + self._cut)
        ]
        return [one if prompt else self._with_unconditional(one) for prompt, one in zip(prompts, encoded, strict=True)]

    def _with_unconditional(self, encoded: EncodedPrompt) -> EncodedPrompt:
        if not self.instruction:
            return encoded
        alone = self._kept(*self._read([""], self.context_tokens)[0])
        runs = (*encoded.runs, *shifted(alone.runs, len(encoded.features)))
        return EncodedPrompt(torch.cat([encoded.features, alone.features]), runs)


def default_instruction() -> str:
    """Returns the instruction the pipeline writes before a prompt unless told otherwise."""
    from diffusers import SanaPipeline  # takes seconds to import

    return "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


def _read_text(parts: Parts) -> Projected:
    from diffusers.models.normalization import RMSNorm

    gemma = InstructedText(
        parts.tokenizers["text_encoder"],
        parts.encoders["text_encoder"],
        token_limit=GEMMA_TOKENS,
        has_end_token=False,
        masks_padding=True,
        lowers_case=True,
        instruction=default_instruction(),
    )
    width = inner_width(parts.denoiser_config)
    modules = {
        "caption_projection": caption_projection(gemma.width, width),
        "caption_norm": RMSNorm(width, eps=NORM_EPSILON, elementwise_affine=True),
    }
    return Projected(gemma, filled(modules, parts.weights), DENOISER, width)


ARCHITECTURE = Architecture(
    name="sana",
    pipeline_classes=frozenset({"SanaPipeline"}),
    text_encoders={"text_encoder": "Gemma2Model"},
    denoiser=DENOISER,
    denoiser_class="SanaTransformer2DModel",
    projection=CROSS_ATTENTION,
    read_text=_read_text,
    check_config=lambda _: None,
    passed_before=("caption_projection", "caption_norm"),
)
