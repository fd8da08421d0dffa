"""What the engine needs of a text-to-image model, whatever its architecture."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scapre.concepts import canonical_json
from scapre.embeddings import TextStack


@dataclass(frozen=True)
class BaseModel:
    """Text encoder and cross-attention projections of one model."""

    architecture: str
    """Name of the adapter that read it."""
    text: TextStack
    projections: Mapping[str, Tensor]
    """Weights `[d_out, d_in]` by name, in canonical order; the live parameters when read from a pipeline."""
    tensor_digests: Mapping[str, str] = field(init=False)
    """Digest of each tensor the base digest covers, text encoder included."""

    def __post_init__(self) -> None:
        state = {f"text_encoder.{plain_name(name)}": tensor for name, tensor in self.text.encoder.state_dict().items()}
        covered = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
        covered.update(self.projections)
        object.__setattr__(self, "tensor_digests", {name: tensor_digest(covered[name]) for name in sorted(covered)})

    @property
    def digest(self) -> str:
        """SHA-256 over names, types, shapes and bytes of the text encoder and the projections."""
        return combined_digest(self.tensor_digests)


def plain_name(name: str) -> str:
    """Returns the parameter name without the level that some releases of transformers put around the text model."""
    return name.removeprefix("text_model.")


def tensor_digest(tensor: Tensor) -> str:
    """Returns the SHA-256 of type, shape and bytes of `tensor`."""
    held = tensor.detach().cpu().contiguous()
    header = canonical_json({"dtype": str(held.dtype).removeprefix("torch."), "shape": list(held.shape)})
    content = hashlib.sha256(header.encode())
    content.update(held.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def combined_digest(tensor_digests: Mapping[str, str]) -> str:
    """Returns the SHA-256 over the canonical listing of tensor digests."""
    return hashlib.sha256(canonical_json(dict(tensor_digests)).encode()).hexdigest()
