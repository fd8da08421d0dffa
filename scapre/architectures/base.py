"""What the engine needs of a text-to-image model, and what an adapter says about a family of them."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scapre.digests import combined_digest, tensor_digests
from scapre.errors import UnsupportedArchitectureError
from scapre.text import TextSource


def memory_name(layer: int) -> str:
    """Returns the name of the second linear map of an MLP of a CLIP encoder."""
    return f"encoder.layers.{layer}.mlp.fc2.weight"


def memory_names(is_held: Callable[[str], bool]) -> list[str]:
    """Returns these names of an encoder, from its first layer to the last that is held."""
    return list(takewhile(is_held, map(memory_name, count())))


@dataclass(frozen=True)
class Parts:
    """The pieces of one model an adapter puts together, from a loaded pipeline or from files."""

    tokenizers: Mapping[str, PreTrainedTokenizerBase | None]
    """Tokenizer of each text encoder, by the encoder's component name."""
    encoders: Mapping[str, PreTrainedModel]
    """Text encoders by component name."""
    denoiser_config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    """Denoiser weights by full name: the projections, and what text passes through before them."""


@dataclass(frozen=True)
class Architecture:
    """A family of models: which classes it is made of, which linear maps read text, and what their input is."""

    name: str
    pipeline_classes: frozenset[str]
    text_encoders: Mapping[str, str]
    """Class of each text encoder the features come from, by component name."""
    denoiser: str
    """Component name of the denoiser."""
    denoiser_class: str
    projection: re.Pattern[str]
    """Matches the names of the linear maps that are edited."""
    read_text: Callable[[Parts], TextSource]
    """Puts together what turns prompts into the projections' input."""
    check_config: Callable[[Mapping[str, Any]], None]
    """Raises `UnsupportedArchitectureError` when text reaches the projections by another way."""
    optional: frozenset[str] = frozenset()
    """Text encoders a checkpoint may lack."""
    passed_before: tuple[str, ...] = ()
    """Modules of the denoiser text passes through before the projections."""
    not_covered: tuple[str, ...] = ()
    """Other ways by which text enters, which an edit of the projections leaves as they are."""
    has_memories: bool = False
    """Whether the memories of its text encoders can be edited, see `scapre.memories`."""
    not_covered_by_memories: tuple[str, ...] = ()
    """What an edit of the memories does not lead anywhere, or does not reach."""

    def is_projection(self, parameter: str) -> bool:
        """Returns whether a denoiser parameter is a weight that is edited."""
        return parameter.endswith(".weight") and bool(self.projection.search(parameter.removesuffix(".weight")))

    def left_open(self, *, memories: bool) -> tuple[str, ...]:
        """Returns what an edit of the memories, or of the projections, does not cover."""
        return self.not_covered_by_memories if memories else self.not_covered

    def is_read(self, parameter: str) -> bool:
        """Returns whether a denoiser parameter is edited or on the way of text to those that are."""
        return self.is_projection(parameter) or parameter.startswith(tuple(f"{name}." for name in self.passed_before))


@dataclass(frozen=True)
class BaseWeights:
    """The edited projections of one model, and what tells whether a model is that one."""

    projections: Mapping[str, Tensor]
    """Weights `[d_out, d_in]` by name, in canonical order; the live parameters when read from a pipeline."""
    tensor_digests: Mapping[str, str]
    """Digest of each tensor the base digest covers: all that features depend on, and the projections."""
    encoders: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameters of the text encoders by component and name, likewise."""

    @property
    def editable(self) -> Mapping[str, Tensor]:
        """Every weight that some edit may change."""
        return {**self.encoders, **self.projections}

    def only(self, names: Iterable[str]) -> "BaseWeights":
        """Returns the same with these weights alone, so that the others need not be kept in memory."""
        kept = frozenset(names)
        encoders, projections = (
            {name: held for name, held in weights.items() if name in kept}
            for weights in (self.encoders, self.projections)
        )
        return replace(self, encoders=encoders, projections=projections)

    @property
    def digest(self) -> str:
        """SHA-256 over names, types, shapes and bytes of text encoders and projections."""
        return combined_digest(self.tensor_digests)


@dataclass(frozen=True)
class BaseModel:
    """Text encoders and the edited projections of one model."""

    architecture: Architecture
    text: TextSource
    weights: BaseWeights


def assemble(architecture: Architecture, parts: Parts) -> BaseModel:
    """Returns the base model, its projections checked and in canonical order.

    Raises:
        UnsupportedArchitectureError: there are no projections, or they do not read the text encoders' features.
    """
    prefix = f"{architecture.denoiser}."
    projections = {
        name: parts.weights[name]
        for name in sorted(parts.weights)
        if architecture.is_projection(name.removeprefix(prefix))
    }
    check_projections(architecture, projections)
    architecture.check_config(parts.denoiser_config)
    text = architecture.read_text(parts)
    if odd := [
        name
        for name, weight in projections.items()
        if weight.ndim != 2 or not len(weight) or weight.shape[1] != text.width
    ]:
        raise UnsupportedArchitectureError(
            f"expected projections with rows of {text.width} numbers, which read that many text features, "
            f"found shape {tuple(projections[odd[0]].shape)} in {odd[0]!r}; restore the checkpoint"
        )
    if absent := [name for name, held in {**text.tensors(), **projections}.items() if held.is_meta]:
        raise UnsupportedArchitectureError(
            f"expected weights in memory, found {absent[0]!r} off-loaded; load the pipeline without off-loading"
        )
    encoders = text.tensors()
    return BaseModel(
        architecture, text, BaseWeights(projections, tensor_digests({**encoders, **projections}), encoders)
    )


def check_projections(architecture: Architecture, projections: Mapping[str, Tensor]) -> None:
    """Checks that there are projections, in a floating-point type.

    Raises:
        UnsupportedArchitectureError: otherwise.
    """
    if not projections:
        raise UnsupportedArchitectureError(
            f"expected projections {architecture.projection.pattern} in {architecture.denoiser}, found none"
        )
    if coded := [name for name, weight in projections.items() if not weight.is_floating_point()]:
        raise UnsupportedArchitectureError(
            f"expected floating-point weights, found {coded[0]!r} in {projections[coded[0]].dtype}; "
            "load the model without quantization"
        )
    ways = (".to_k.", ".to_v.")
    partners = {name.replace(*(ways if ways[0] in name else ways[::-1])) for name in projections}
    if missing := sorted(partners - projections.keys()):
        raise UnsupportedArchitectureError(
            f"expected keys and values of every cross-attention, found no {missing[0]!r}; restore the checkpoint"
        )


def check_class(component: str, found: str | None, expected: str) -> None:
    """Raises `UnsupportedArchitectureError` unless `component` is of the expected class."""
    if found in (None, "NoneType"):
        raise UnsupportedArchitectureError(
            f"expected {expected} as {component}, found none; load the model with it, whose features an edit rests on"
        )
    if found != expected:
        raise UnsupportedArchitectureError(f"expected {expected} as {component}, found {found}; no adapter for it yet")
