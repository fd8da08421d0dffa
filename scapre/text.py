"""From prompts to the features a model's projections read: tokenizers, encoders, how their outputs are put together.

Guarantees:
    1. Features are those of the diffusers pipeline: same tokens, same length, same mask, same hidden state.
    2. An encoder in half precision is read in float32; the model itself is left as it is.
    3. Of padding, only what the model reads is kept: all of it, a grid (long contexts), or none (masked).
"""

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, takewhile
from typing import Any, Protocol, Self, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scapre.errors import CheckpointError, UnsupportedArchitectureError
from scapre.slots import EncodedPrompt, Run, shifted

BATCH_TOKENS: Mapping[str, int] = {"cpu": 8 * 77}
"""Tokens an encoder is given at once on each kind of device, which bounds its memory."""
OTHER_BATCH_TOKENS = 64 * 77
COMPILED = "_orig_mod."
"""Level of a parameter's name that `torch.compile` puts around a part."""
MASKED_STEP = 16
"""Texts whose padding is masked are filled up to the next multiple."""
_HALF = frozenset({torch.float16, torch.bfloat16})
_READABLE = _HALF | {torch.float32, torch.float64}
_TOKENIZING = threading.Lock()  # a tokenizer is set up anew for each call, so calls must not overlap
_Module = TypeVar("_Module", bound=nn.Module)


class TextSource(Protocol):
    """Whatever turns prompts into the features that projections read."""

    @property
    def width(self) -> int:
        """d_in of the features."""
        ...

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules text passes through, by component."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Returns the parameters features depend on, by component and name."""
        ...

    def in_float32(self) -> "TextSource":
        """Returns a source that reads in float32 or better.

        Raises:
            CheckpointError: an encoder cannot be read so, or its tokenizer puts other tokens around a text.
        """
        ...

    def name_ends(self, text_and_name: str) -> list[int]:
        """Returns the slot of the last token of `text_and_name`, for each run."""
        ...

    def has_room_for(self, text: str) -> bool:
        """Returns whether `text` fits the context of every encoder, so that nothing of it is cut."""
        ...

    def knows(self, text: str) -> bool:
        """Returns whether no tokenizer reads any of `text` as its one token for whatever it does not know."""
        ...

    def spelled_out(self, text: str) -> str:
        """Returns `text` with all vectors of what a tokenizer was taught by textual inversion, as it is drawn."""
        ...

    def encode(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Returns the features of each prompt."""
        ...


@dataclass(frozen=True)
class TextStack:
    """One tokenizer and one encoder; by default CLIP as Stable Diffusion 1.x and 2.x read it."""

    tokenizer: PreTrainedTokenizerBase | None
    """`None` when the checkpoint holds none: digests are known, prompts cannot be read."""
    encoder: PreTrainedModel
    component: str = "text_encoder"
    """Name of the encoder in the pipeline."""
    hidden_layer: int | None = None
    """Which hidden state is read, before any norm; `None` for the encoder's own output."""
    token_limit: int | None = None
    """Tokens a prompt is cut or padded to; `None` for what tokenizer and position table allow."""
    lead: int = 1
    """Special tokens before the first word."""
    has_end_token: bool = True
    is_causal: bool = True
    masks_padding: bool = False
    """Whether encoder and denoiser ignore padding."""
    padding_grid: int | None = None
    """Number of padding slots to keep of a context; `None` for all."""
    lowers_case: bool = False
    """Whether the pipeline writes prompts in lower case and strips them."""

    @property
    def width(self) -> int:
        """d_in of the features."""
        return int(self.encoder.config.hidden_size)

    @property
    def context_tokens(self) -> int:
        """Number of slots a prompt is given."""
        if self.token_limit is not None:
            return self.token_limit
        positions = int(self.encoder.config.max_position_embeddings)
        return positions if self.tokenizer is None else int(min(self.tokenizer.model_max_length, positions))

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The encoder, by component."""
        return {self.component: self.encoder}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the encoder's parameters, tied ones once."""
        return {f"{self.component}.{plain_name(name)}": held for name, held in self.encoder.named_parameters()}

    def in_float32(self) -> "TextStack":
        """Returns the stack, with an encoder in half precision read in float32: small differences matter."""
        self._refuse_other_ends()
        return replace(self, encoder=_in_float32(self.encoder))

    def name_ends(self, text_and_name: str) -> list[int]:
        """Returns the slot of the last token of `text_and_name`."""
        return [self._count_tokens(self._written(text_and_name)) - 1 - self.has_end_token]

    def has_room_for(self, text: str) -> bool:
        """Returns whether `text` fits the context, so that nothing of it is cut."""
        return self._count_tokens(self._written(text)) <= self.context_tokens

    def knows(self, text: str) -> bool:
        """Returns whether the tokenizer reads all of `text` as words: not as its token for whatever it does not know.

        Neither are its marks words, which a text may hold as they are written ("</s>"); but for the word "!", with
        which some tokenizers pad.
        """
        with _TOKENIZING:
            tokens = self._tokenizer()(self._written(text), add_special_tokens=False, verbose=False)
        return self._marks.isdisjoint(tokens.input_ids)

    def spelled_out(self, text: str) -> str:
        """Returns `text` with all vectors of what the tokenizer was taught by textual inversion, as it is drawn.

        A word of several vectors is a token, and the same with _1, _2 and so on, which diffusers puts behind the first.
        """
        for first, others in self._taught.items():
            whole = " ".join([first, *others])
            if first in text.split() and whole not in text:
                words = (word for word in text.split() if word not in others)
                text = " ".join(whole if word == first else word for word in words)
        return text

    @cached_property
    def _marks(self) -> frozenset[int | None]:
        marks = {getattr(self.tokenizer, f"{mark}_token_id", None) for mark in ("unk", "bos", "eos")}
        if str(getattr(self.tokenizer, "pad_token", None)).startswith(("<", "[")):
            marks.add(getattr(self.tokenizer, "pad_token_id", None))
        return frozenset(marks)

    @cached_property
    def _taught(self) -> Mapping[str, tuple[str, ...]]:
        """The tokens behind the first of each word of several vectors."""
        added = getattr(self.tokenizer, "added_tokens_encoder", {})
        behind = {
            first: tuple(takewhile(added.__contains__, (f"{first}_{place}" for place in count(1)))) for first in added
        }
        return {first: others for first, others in behind.items() if others}

    def encode(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Returns the features of each prompt."""
        read = self._read([self._written(prompt) for prompt in prompts], self.context_tokens)
        return [self._kept(features, end) for features, end in read]

    def _refuse_other_ends(self) -> None:
        around, expected = self._count_tokens(""), self.lead + self.has_end_token
        if around != expected:
            raise CheckpointError(
                f"expected a tokenizer for {self.component} that puts {expected} tokens of its own around a text, "
                f"found one that puts {around}, so that other slots would be read than those of the name; restore "
                "the tokenizer of the checkpoint's family"
            )

    def _refuse_tokens_without_vector(self, ids: Int[Tensor, "prompts slots"]) -> None:
        embeddings = self.encoder.get_input_embeddings()
        if isinstance(embeddings, nn.Embedding) and int(ids.max()) >= embeddings.num_embeddings:
            raise CheckpointError(
                f"expected a {self.component} with a vector for every token of its tokenizer, found "
                f"{embeddings.num_embeddings} vectors and token {int(ids.max())}; give it vectors for added tokens "
                "(resize_token_embeddings), or restore the tokenizer"
            )

    def _count_tokens(self, text: str) -> int:
        """Returns how many tokens `text` is, special ones included, however long it is."""
        with _TOKENIZING:
            tokens = self._tokenizer()(text, padding=False, truncation=False, verbose=False)
        return len(tokens.input_ids)

    def _written(self, prompt: str) -> str:
        return prompt.lower().strip() if self.lowers_case else prompt

    def _tokenizer(self) -> Callable[..., Any]:
        if self.tokenizer is None:
            raise CheckpointError(
                f"expected a tokenizer for {self.component}, found none; load the pipeline with one. A single file "
                "holds none: put the folder `tokenizer` of any checkpoint of the same family beside it, or name it, by "
                "--tokenizer DIR or scapre.SingleFile(path, tokenizer=DIR)"
            )
        return self.tokenizer

    def _read(self, texts: list[str], limit: int) -> list[tuple[Float[Tensor, "slots d_in"], int]]:
        """Returns hidden states and the slot of the last token of each text.

        Padding that is masked still changes the last bits of what stands before it, and so does how many rows a
        product has where they are few: each text gets as much as its own length asks for, whatever else is read.
        """
        with _TOKENIZING:
            tokens = self._tokenizer()(
                texts,
                padding="max_length",
                max_length=limit,
                truncation=True,
                padding_side="right",
                return_tensors="pt",
            )
        ids, mask = tokens.input_ids, tokens.attention_mask
        self._refuse_tokens_without_vector(ids)
        counts = mask.sum(dim=1)
        lengths = torch.full_like(counts, ids.shape[1])
        if self.masks_padding:
            lengths = lengths.minimum((counts / MASKED_STEP).ceil().to(counts) * MASKED_STEP)
        tokens_at_once = BATCH_TOKENS.get(self._device.type, OTHER_BATCH_TOKENS)
        hidden: dict[int, Tensor] = {}
        for length in lengths.unique().tolist():
            for places in (lengths == length).nonzero().flatten().split(max(1, tokens_at_once // length)):
                states = self._hidden(ids[places, :length], mask[places, :length])
                hidden.update(zip(places.tolist(), states, strict=True))
        return [(hidden[place], count - 1) for place, count in enumerate(counts.tolist())]

    def _hidden(
        self, ids: Int[Tensor, "prompts slots"], mask: Int[Tensor, "prompts slots"]
    ) -> Float[Tensor, "prompts slots d_in"]:
        uses_mask = self.masks_padding or bool(getattr(self.encoder.config, "use_attention_mask", False))
        output = self.encoder(
            ids.to(self._device),
            attention_mask=mask.to(self._device) if uses_mask else None,
            output_hidden_states=self.hidden_layer is not None,
        )
        return output.last_hidden_state if self.hidden_layer is None else output.hidden_states[self.hidden_layer]

    @property
    def _device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def _kept(self, hidden: Float[Tensor, "slots d_in"], end: int) -> EncodedPrompt:
        padding = self._padding(end)
        return EncodedPrompt(hidden[[*range(end + 1), *padding]].clone(), (self._run(end, padding),))

    def _run(self, end: int, padding: tuple[int, ...]) -> Run:
        return Run(
            self.context_tokens,
            end,
            padding,
            lead=self.lead,
            has_end_token=self.has_end_token,
            is_causal=self.is_causal,
        )

    def _padding(self, end: int) -> tuple[int, ...]:
        if self.masks_padding:
            return ()
        context, grid = self.context_tokens, self.padding_grid
        slots = range(context) if grid is None else [(step + 1) * context // grid - 1 for step in range(grid)]
        return tuple(slot for slot in slots if slot > end)


@dataclass(frozen=True)
class _Joined(ABC):
    """Several sources that read each prompt, their features put together."""

    sources: tuple[TextSource, ...]

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The encoders, by component."""
        return {name: module for source in self.sources for name, module in source.modules.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the encoders' parameters."""
        return {name: held for source in self.sources for name, held in source.tensors().items()}

    def in_float32(self) -> Self:
        """Returns a source that reads in float32 or better."""
        return replace(self, sources=tuple(source.in_float32() for source in self.sources))

    def has_room_for(self, text: str) -> bool:
        """Returns whether `text` fits the context of every encoder, so that nothing of it is cut."""
        return all(source.has_room_for(text) for source in self.sources)

    def knows(self, text: str) -> bool:
        """Returns whether every tokenizer knows all of `text`."""
        return all(source.knows(text) for source in self.sources)

    def spelled_out(self, text: str) -> str:
        """Returns `text` with all vectors of what any tokenizer was taught."""
        for source in self.sources:
            text = source.spelled_out(text)
        return text

    def encode(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Returns the features of each prompt."""
        return [self._joined(parts) for parts in zip(*(source.encode(prompts) for source in self.sources), strict=True)]

    @abstractmethod
    def _joined(self, parts: Sequence[EncodedPrompt]) -> EncodedPrompt:
        """Returns one prompt's features, put together."""


@dataclass(frozen=True)
class SideBySide(_Joined):
    """Encoders that read the same tokens, their features joined along the width."""

    padded_width: int | None = None
    """Width the model fills up with zeros."""

    @property
    def width(self) -> int:
        """d_in of the features."""
        return self.padded_width or sum(source.width for source in self.sources)

    def name_ends(self, text_and_name: str) -> list[int]:
        """Returns the slot of the last token of `text_and_name`."""
        return self.sources[0].name_ends(text_and_name)

    def _joined(self, parts: Sequence[EncodedPrompt]) -> EncodedPrompt:
        if len({part.runs for part in parts}) > 1:
            raise UnsupportedArchitectureError(
                "expected text encoders whose tokenizers cut prompts alike, found different ones; restore the "
                "tokenizers of the checkpoint"
            )
        features = torch.cat([part.features for part in parts], dim=1)
        return EncodedPrompt(nn.functional.pad(features, (0, self.width - features.shape[1])), parts[0].runs)


@dataclass(frozen=True)
class OneAfterAnother(_Joined):
    """Sources whose slots the model reads one after another, each a run of its own."""

    @property
    def width(self) -> int:
        """d_in of the features."""
        return self.sources[0].width

    def name_ends(self, text_and_name: str) -> list[int]:
        """Returns the slot of the last token of `text_and_name`, for each run."""
        return [end for source in self.sources for end in source.name_ends(text_and_name)]

    def _joined(self, parts: Sequence[EncodedPrompt]) -> EncodedPrompt:
        runs: list[Run] = []
        rows = 0
        for part in parts:
            runs += shifted(part.runs, rows)
            rows += len(part.features)
        return EncodedPrompt(torch.cat([part.features for part in parts]), tuple(runs))


@dataclass(frozen=True)
class Projected:
    """A source whose features pass through a module of the denoiser, slot by slot, before any projection reads them."""

    source: TextSource
    module: nn.Module
    component: str
    """Name of the denoiser in the pipeline."""
    width: int
    """d_in of what comes out."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The encoders and the module, by component."""
        return {**self.source.modules, self.component: self.module}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the parameters of encoders and module."""
        own = {f"{self.component}.{name}": held for name, held in self.module.named_parameters()}
        return {**self.source.tensors(), **own}

    def in_float32(self) -> "Projected":
        """Returns a source that reads in float32 or better."""
        return replace(self, source=self.source.in_float32(), module=_in_float32(self.module))

    def name_ends(self, text_and_name: str) -> list[int]:
        """Returns the slot of the last token of `text_and_name`, for each run."""
        return self.source.name_ends(text_and_name)

    def has_room_for(self, text: str) -> bool:
        """Returns whether `text` fits the context of every encoder, so that nothing of it is cut."""
        return self.source.has_room_for(text)

    def knows(self, text: str) -> bool:
        """Returns whether every tokenizer knows all of `text`."""
        return self.source.knows(text)

    def spelled_out(self, text: str) -> str:
        """Returns `text` with all vectors of what any tokenizer was taught."""
        return self.source.spelled_out(text)

    def encode(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Returns the features of each prompt as the projections read them."""
        own = next(self.module.parameters())
        read_as = torch.promote_types(own.dtype, torch.float32)
        return [
            replace(prompt, features=self.module(prompt.features.to(own.device, read_as)))
            for prompt in self.source.encode(prompts)
        ]


def plain_name(name: str) -> str:
    """Returns a parameter's name without the levels that compiling, and some releases of transformers, put in."""
    return name.replace(COMPILED, "").removeprefix("text_model.")


def _in_float32(module: _Module) -> _Module:
    """Returns a copy of a module in half precision that shares its weights, each made float32 where it is read.

    A float32 copy of all weights at once would take twice what the encoder does: 19 GB for T5-XXL. Only embeddings are
    copied so, since of their many rows a text reads few.
    """
    types = {weight.dtype for weight in module.parameters()}
    if unknown := sorted(str(found) for found in types - _READABLE):
        raise CheckpointError(
            f"expected a text encoder in float64, float32, bfloat16 or float16, found {unknown[0]}; "
            "load it in one of these"
        )
    if types.isdisjoint(_HALF):
        return module
    read = copy_sharing_weights(module)
    for part in list(read.modules()):
        if isinstance(part, nn.Embedding):
            part.float()
        for name, held in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if held.dtype in _HALF:
                parametrize.register_parametrization(part, name, _Widened(), unsafe=True)
    return read


def copy_sharing_weights(module: _Module) -> _Module:
    """Returns a copy of a module whose weights lie where the module's own do.

    Raises:
        CheckpointError: it cannot be copied.
    """
    try:
        return copy.deepcopy(module, {id(weight): _shared(weight) for weight in module.parameters()})
    except (TypeError, RuntimeError) as error:  # a lock, or a tensor that another one was computed from
        raise CheckpointError(
            f"expected a text encoder that can be copied, found {error}; load the pipeline anew, without off-loading "
            "and without what changes its modules (pruning, hooks)"
        ) from error


def _shared(weight: nn.Parameter) -> nn.Parameter:
    """Returns a parameter of its own over the same memory: what is done to the copy's does not reach the model's."""
    return nn.Parameter(weight.clone() if weight.is_inference() else weight.data, requires_grad=False)


class _Widened(nn.Module):
    def forward(self, held: Tensor) -> Tensor:
        return held.float()
