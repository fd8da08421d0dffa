"""A text encoder's memory: the second linear map of the MLP in the layer that the features come from.

Legend: in one slot, h [d_ff] is what that map reads, W [d, d_ff] its weight, o [d] what its layer gives out:
o = r + W h + b, where r comes from before. A change Δ of W changes o by Δ h, whatever else the encoder does, and
through o all that a model reads of it.

h is several times as wide as o and comes out of a nonlinearity, so that names which share few directions in o lie
apart in h. That such maps act as memories, keys h and values W h, is due to Geva et al. 2021 ("Transformer Feed-Forward
Layers Are Key-Value Memories"); Arad et al. 2024 ("ReFACT") edit them in CLIP, one name after another.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from scapre.architectures.base import BaseModel, memory_name
from scapre.errors import CheckpointError, UnsupportedArchitectureError
from scapre.text import SideBySide, TextSource, TextStack, copy_sharing_weights


@dataclass(frozen=True)
class MemoryStack(TextStack):
    """A CLIP encoder, of which [h, o] of each slot are read instead of the features."""

    @property
    def layer(self) -> int:
        """Which layer the features come from, counted from the last, -1."""
        return -1 if self.hidden_layer is None else self.hidden_layer

    @property
    def weight_name(self) -> str:
        """Name of W, with its component."""
        return f"{self.component}.{memory_name(len(_layers(self.encoder)) + self.layer)}"

    @property
    def memory_width(self) -> int:
        """d_ff."""
        return int(self.encoder.config.intermediate_size)

    @property
    def width(self) -> int:
        """d_ff + d."""
        return self.memory_width + super().width

    def in_float32(self) -> TextStack:
        """Returns a stack whose encoder is a copy over the same weights, and whose features are [h, o]."""
        ready = super().in_float32()
        own = copy_sharing_weights(self.encoder) if ready.encoder is self.encoder else ready.encoder
        told: dict[str, Any] = {**_fields(self), "encoder": _Tapped(own, self.layer), "hidden_layer": None}
        return TextStack(**told)


class _Tapped(nn.Module):
    """An encoder whose output is [h, o] of one layer."""

    def __init__(self, encoder: PreTrainedModel, layer: int) -> None:
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        self._seen = threading.local()  # batches are read side by side
        block = _layers(encoder)[layer]
        block.mlp.fc2.register_forward_pre_hook(self._keep_input)
        block.register_forward_hook(self._keep_output)

    def forward(
        self,
        ids: Int[Tensor, "prompts slots"],
        attention_mask: Tensor | None,
        output_hidden_states: bool,  # noqa: ARG002  as encoders are called
    ) -> SimpleNamespace:
        self._seen.h = self._seen.o = None
        self.encoder(ids, attention_mask=attention_mask)
        heard, told = self._seen.h, self._seen.o
        self._seen.h = self._seen.o = None
        if heard is None or told is None:
            raise CheckpointError(
                "expected a text encoder that computes with its own modules, found one whose forward was replaced; "
                "load the pipeline anew"
            )
        return SimpleNamespace(last_hidden_state=torch.cat([heard, told], dim=-1))

    def get_input_embeddings(self) -> nn.Module:
        """Returns what looks up a vector for each token."""
        return self.encoder.get_input_embeddings()

    def _keep_input(self, _: nn.Module, given: tuple[Float[Tensor, "prompts slots d_ff"]]) -> None:
        self._seen.h = given[0]

    def _keep_output(self, _: nn.Module, __: object, output: Float[Tensor, "prompts slots d"]) -> None:
        self._seen.o = output


def read_memories(base: BaseModel) -> Mapping[str, MemoryStack]:
    """Returns how to read each memory that an edit may change, by the name of its weight.

    Raises:
        UnsupportedArchitectureError: features come from other encoders than CLIP's as well, or W is no plain weight.
    """
    if not base.architecture.has_memories:
        raise UnsupportedArchitectureError(
            f"expected a model that reads its text by CLIP alone, found {base.architecture.name}, whose text encoder "
            "has no memory that can be edited so; use another method, which edits the projections"
        )
    found: dict[str, MemoryStack] = {}
    for stack in base.text.sources if isinstance(base.text, SideBySide) else (base.text,):
        memory = MemoryStack(**_fields(stack))
        weight = base.weights.encoders.get(memory.weight_name)
        if weight is None or not weight.is_floating_point():
            raise UnsupportedArchitectureError(
                f"expected a plain floating-point weight {memory.weight_name}, found "
                f"{'none' if weight is None else weight.dtype}; load the text encoder without pruning and quantization"
            )
        found[memory.weight_name] = memory
    return found


def _fields(stack: TextSource) -> dict[str, Any]:
    return {field.name: getattr(stack, field.name) for field in fields(TextStack)}


def _layers(encoder: Any) -> Any:
    return getattr(encoder, "text_model", encoder).encoder.layers
