"""From names to token features: prompts, tokens, and the slots that carry a concept.

Guarantees:
    1. Each distinct prompt is encoded once, in float32 or better, with one CPU thread; features are float64.
    2. Slots start at the last token of the concept's name: attention is causal, so what comes before never saw it and
       everything after it (rest of the sentence, end token, padding) carries it.
    3. No randomness is consumed.
"""

import copy
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scapre.concepts import Concept, name_key
from scapre.determinism import single_threaded
from scapre.errors import InvalidConceptError

BATCH_PROMPTS = 64
EMPTY_PROMPT = ""

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "object": (
        *("{}", "{a}", "a photo of {a}", "a picture of {a}", "a drawing of {a}", "a painting of {a}"),
        *("{a} in the park", "a red {}"),
    ),
    "style": (
        *("{}", "a painting in the style of {}", "a picture in {} style", "a house in the style of {}"),
        *("a portrait of a woman, {} style", "{} painting of a tree"),
    ),
    "identity": (
        *("{}", "{a}", "a photo of {}", "a photo of {a}", "a portrait of {}", "a painting of {}"),
        *("{a} in the park", "{} smiling at the camera"),
    ),
    "unsafe": ("{}", "a photo of {}", "a picture of {}", "a painting of {}", "a photo of people, {}"),
}
"""Sentences per kind; `{}` is the name, `{a}` the name with its article. The first is the bare name, for every kind."""
BARE = "{}"


@dataclass(frozen=True)
class TextStack:
    """The tokenizer and the text encoder of one pipeline."""

    tokenizer: PreTrainedTokenizerBase
    encoder: PreTrainedModel

    @property
    def context_tokens(self) -> int:
        """Number of token slots every prompt is padded to."""
        positions = self.encoder.config.max_position_embeddings
        return int(min(self.tokenizer.model_max_length, positions))


@dataclass(frozen=True)
class EncodedPrompt:
    """Token features of one prompt."""

    features: Float[Tensor, "context d_in"]
    end: int
    """Slot of the end token; all later slots are padding."""

    @property
    def is_full(self) -> bool:
        """Whether the prompt fills the whole context (and may have been cut)."""
        return self.end == len(self.features) - 1

    def padding(self, count: int) -> list[int]:
        """Returns up to `count` padding slots, spread evenly over the padding, its first and last included."""
        first, last = self.end + 1, len(self.features) - 1
        available = last - first + 1
        if available <= count:
            return list(range(first, last + 1))
        if count == 1:
            return [first]
        return [first + (step * (available - 1)) // (count - 1) for step in range(count)]


class PromptEncoder:
    """Encodes prompts, each distinct one once."""

    def __init__(self, text: TextStack) -> None:
        self._text = text
        self._encoded: dict[str, EncodedPrompt] = {}

    def __getitem__(self, prompt: str) -> EncodedPrompt:
        """Returns the features of a prompt given to `encode` before."""
        return self._encoded[prompt]

    def encode(self, prompts: Iterable[str]) -> None:
        """Encodes the prompts that are new, in canonical order."""
        pending = sorted(set(prompts) - set(self._encoded))
        if not pending:
            return
        encoder = self._text.encoder
        if next(encoder.parameters()).dtype in (torch.float16, torch.bfloat16):
            encoder = copy.deepcopy(encoder).float()  # half precision would lose the small differences that matter
        was_training = encoder.training
        encoder.eval()
        try:
            with single_threaded(), torch.no_grad():
                for start in range(0, len(pending), BATCH_PROMPTS):
                    self._encode_batch(encoder, pending[start : start + BATCH_PROMPTS])
        finally:
            encoder.train(was_training)

    def last_token(self, prompt: str, text_before_and_name: str) -> int:
        """Returns the slot of the last token of the name that ends `text_before_and_name` inside `prompt`."""
        length = len(self._text.tokenizer(text_before_and_name, truncation=False, verbose=False).input_ids)
        slot = length - 2  # without the end token
        if slot >= self[prompt].end:
            raise InvalidConceptError(
                f"expected a name that fits the {self._text.context_tokens} tokens of this text encoder, "
                f"found {prompt!r}; use a shorter name or alias"
            )
        return slot

    def longest_word(self, name: str) -> int:
        """Returns into how many tokens the tokenizer cuts the longest word of `name`; 1 means it knows every word."""
        words = (self._text.tokenizer(word, add_special_tokens=False).input_ids for word in name.split())
        return max(len(tokens) for tokens in words)

    def _encode_batch(self, encoder: PreTrainedModel, prompts: Sequence[str]) -> None:
        tokens = self._text.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._text.context_tokens,
            truncation=True,
            return_tensors="pt",
        )
        device = next(encoder.parameters()).device
        uses_mask = bool(getattr(encoder.config, "use_attention_mask", False))
        mask = tokens.attention_mask.to(device) if uses_mask else None
        hidden = encoder(tokens.input_ids.to(device), attention_mask=mask)[0].clone()
        ends = end_slots(tokens.input_ids, int(self._text.tokenizer.eos_token_id))
        for prompt, features, end in zip(prompts, hidden, ends.tolist(), strict=True):
            self._encoded[prompt] = EncodedPrompt(features.clone(), end)


def end_slots(tokens: Int[Tensor, "prompts context"], end_token: int) -> Int[Tensor, " prompts"]:
    """Returns the slot of the first end token of each prompt; later ones are padding."""
    return (tokens == end_token).int().argmax(dim=1)


@dataclass(frozen=True)
class ConceptPrompt:
    """One sentence that draws a concept, and where the concept ends in it."""

    text: str
    up_to_name: str
    """The sentence up to and including the name."""


def fill(template: str, name: str) -> ConceptPrompt:
    """Returns `template` with `name` put in."""
    placed = template.replace("{a}", "{}") if "{a}" in template else template
    shown = _with_article(name) if "{a}" in template else name
    before, after = placed.split("{}")
    return ConceptPrompt(f"{before}{shown}{after}", f"{before}{shown}")


def concept_prompts(concept: Concept) -> list[tuple[str, str]]:
    """Returns every (template, name) pair of the concept: each sentence of its kind with each of its names."""
    return [(template, name) for template in TEMPLATES[concept.kind] for name in concept.names]


def templates_of(concepts: Iterable[Concept]) -> tuple[str, ...]:
    """Returns every sentence the concepts are put into, in canonical order; the bare name comes first.

    Retained names must appear in the same sentences, or the closed form would spend its change on what tells those
    sentences, rather than the concepts, from everything else.
    """
    kinds = {concept.kind for concept in concepts}
    return (BARE, *sorted({template for kind in kinds for template in TEMPLATES[kind]} - {BARE}))


def spread_templates(name: str, templates: Sequence[str]) -> tuple[str, ...]:
    """Returns the bare name and one further sentence, chosen by the name alone: many names cover all sentences."""
    others = templates[1:]
    return (BARE, others[zlib.crc32(name_key(name).encode()) % len(others)]) if others else (BARE,)


def aligned_slot(slot: int, prompt: EncodedPrompt, other: EncodedPrompt) -> int:
    """Returns the slot of `other` that plays the part of `slot` in `prompt`.

    End goes to end, padding to padding at the same position; words are counted back from the end token, so that last
    word goes to last word. A prompt without words is aligned position by position.
    """
    if other.end <= 1:
        return slot
    if slot == prompt.end:
        return other.end
    if slot > prompt.end:
        return max(slot, other.end)
    return max(other.end - (prompt.end - slot), 1)


def _with_article(name: str) -> str:
    first = name.split()[0].casefold()
    if first in {"a", "an", "the", "two", "people", "children"}:
        return name
    return f"{'an' if first[0] in 'aeiou' else 'a'} {name}"
