"""From names to token features: prompts, tokens, and the slots that carry a concept.

Guarantees:
    1. Each distinct prompt is encoded once (again only if other padding of it is asked for), in float32 or better.
       Batches are encoded side by side, each by one CPU thread, so that the same bytes come out whatever the number of
       threads.
    2. Where attention is causal, slots start at the last token of the first word of the concept's name: no text before
       it saw the concept, and everything after it (rest of the name and sentence, end token, padding) carries it. What
       a retained name begins with as well ("fire" and "fire engine") is then both to change and to stay; what is
       retained weighs more. Where attention is not causal, all slots carry the concept.
    3. No randomness is consumed.
"""

import itertools
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from torch import nn

from scapre.concepts import Concept, name_key
from scapre.determinism import side_by_side
from scapre.errors import CheckpointError
from scapre.feature_cache import CachedFeatures
from scapre.slots import EncodedPrompt, Kept
from scapre.text import TextSource

BATCH_PROMPTS = 32
MOST_WORKERS = 4
"""Batches encoded at the same time; each needs memory of its own."""
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
ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True)
class ConceptPrompt:
    """One sentence that draws a concept, and where the concept ends in it."""

    text: str
    up_to_name: str
    """The sentence up to and including the name."""
    up_to_first_word: str
    """The sentence up to and including the first word of the name that is no article."""


OnProgress = Callable[[int, int], None]
"""Called with how many prompts are encoded and how many are known to be needed so far."""


class PromptEncoder:
    """Encodes prompts, each distinct one once; with a cache, over edits too."""

    def __init__(
        self, text: TextSource, cache: CachedFeatures | None = None, on_progress: OnProgress | None = None
    ) -> None:
        self._text, self._cache, self._on_progress = text, cache, on_progress
        self._done = self._asked = self._expected = 0
        self._reader: TextSource | None = None
        self._held: dict[tuple[str, Kept | None], EncodedPrompt] = {}
        self._alone: dict[str, EncodedPrompt] = {}
        self._has_room: dict[str, bool] = {}

    def followed_by(self, text: TextSource, cache: CachedFeatures | None = None) -> "PromptEncoder":
        """Returns an encoder that reads from another source, and goes on where this one's progress ends."""
        other = PromptEncoder(text, cache, self._on_progress)
        other._done, other._asked, other._expected = self._done, self._asked, self._expected
        return other

    def expect(self, prompts: int) -> None:
        """Counts prompts as needed before they are asked for."""
        self._asked += prompts
        self._expected += prompts

    def forget(self) -> None:
        """Lets go of what was read so far."""
        self._held.clear()
        self._alone.clear()

    def __getitem__(self, prompt: str) -> EncodedPrompt:
        """Returns the features of a prompt as it was last given to `encode`."""
        return self._alone[prompt]

    def beside(self, prompt: str, other: EncodedPrompt) -> EncodedPrompt:
        """Returns the features of a prompt given to `encode_as` before, with the runs of `other` or as a whole."""
        return self._held[prompt, None if (prompt, None) in self._held else other.runs]

    def encode(self, prompts: Iterable[str], *, padding: int | None = None) -> None:
        """Encodes the prompts that are new, in canonical order.

        Args:
            prompts: what to encode.
            padding: how many padding slots of each run are kept, spread evenly; all of them if `None`. Features read
                by themselves need no more than are read.
        """
        self.encode_as((prompt, padding) for prompt in prompts)

    def encode_as(self, wanted: Iterable[tuple[str, Kept | None]]) -> None:
        """Encodes what is new of prompts and what is kept of each, in canonical order; with `None` all is kept."""
        pending: dict[str, set[Kept | None]] = {}
        for prompt, kept in wanted:
            held = self._held.get((prompt, None)) or self._held.get((prompt, kept))
            if held:
                self._hold(prompt, kept, held)
            else:
                pending.setdefault(prompt, set()).add(kept)
        if self._cache:
            asked = [(prompt, kept) for prompt, forms in pending.items() for kept in forms if kept is not None]
            for (prompt, kept), made in self._cache.read(asked).items():
                self._hold(prompt, kept, made)
                pending[prompt].remove(kept)
            if counted := min(sum(not forms for forms in pending.values()), self._expected):
                self._expected -= counted
                self._tell(counted)
        new = {prompt: pending[prompt] for prompt in sorted(pending) if pending[prompt]}
        if new:
            self._asked += max(0, len(new) - self._expected)
            self._expected = max(0, self._expected - len(new))
            self._read(new)

    def _hold(self, prompt: str, kept: Kept | None, made: EncodedPrompt) -> None:
        self._held[prompt, kept] = made
        if not isinstance(kept, tuple):
            self._alone[prompt] = made

    def _read(self, wanted: Mapping[str, Collection[Kept | None]]) -> None:
        reader = self._reader = self._reader or self._text.in_float32()
        prompts = list(wanted)
        batches = [prompts[start : start + BATCH_PROMPTS] for start in range(0, len(prompts), BATCH_PROMPTS)]

        def read(batch: Sequence[str]) -> dict[tuple[str, Kept | None], EncodedPrompt]:
            encoded = reader.encode(batch)
            _refuse_nonsense(batch, encoded, reader.modules)
            return {
                (prompt, kept): whole if kept is None else whole.thinned(kept)
                for prompt, whole in zip(batch, encoded, strict=True)
                for kept in wanted[prompt]
            }

        read_batches = side_by_side(read, batches, on_cpu=_is_on_cpu(reader), most=MOST_WORKERS)
        with _evaluating(reader.modules.values()), closing(read_batches):
            for batch, found in zip(batches, read_batches, strict=True):
                if self._cache:
                    self._cache.keep({(p, kept): made for (p, kept), made in found.items() if kept is not None})
                for (prompt, kept), made in found.items():
                    self._hold(prompt, kept, made)
                self._tell(len(batch))

    def _tell(self, more: int) -> None:
        self._done += more
        if self._on_progress:
            self._on_progress(self._done, self._asked)

    def has_room_for(self, text: str) -> bool:
        """Returns whether `text` fits the context of every encoder, so that nothing of it is cut."""
        if text not in self._has_room:
            self._has_room[text] = self._text.has_room_for(text)
        return self._has_room[text]

    def target_slots(self, filled: ConceptPrompt, padding: int) -> list[int]:
        """Returns the rows of `filled` that carry its concept, and of up to `padding` padding slots of each run."""
        prompt = self[filled.text]
        first = self._text.name_ends(filled.up_to_first_word)
        starts = [start if run.is_causal else 0 for run, start in zip(prompt.runs, first, strict=True)]
        return prompt.rows_from(starts, padding)

    def longest_words(self, names: Iterable[str]) -> dict[str, int]:
        """Returns into how many tokens the first tokenizer cuts the longest word of each name; 1: it knows them all."""
        words = {name: name.split() for name in names}
        nothing = self._text.name_ends(EMPTY_PROMPT)[0]
        tokens = {word: self._text.name_ends(word)[0] - nothing for word in set(itertools.chain(*words.values()))}
        return {name: max(tokens[word] for word in own) for name, own in words.items()}

    def knows(self, name: str) -> bool:
        """Returns whether no tokenizer reads any of `name` as its one token for whatever it does not know."""
        return self._text.knows(name)

    def spelled_out(self, name: str) -> str:
        """Returns the name with all vectors of what a tokenizer was taught by textual inversion."""
        return self._text.spelled_out(name)


def _refuse_nonsense(
    prompts: Sequence[str], encoded: Sequence[EncodedPrompt], modules: Mapping[str, nn.Module]
) -> None:
    for text, prompt in zip(prompts, encoded, strict=True):
        if not bool(prompt.features.isfinite().all()):
            raise CheckpointError(
                f"expected finite features of {text!r}, found NaN or infinity; restore the weights it passes through: "
                f"{', '.join(modules)}"
            )


def _is_on_cpu(text: TextSource) -> bool:
    return all(parameter.device.type == "cpu" for module in text.modules.values() for parameter in module.parameters())


@contextmanager
def _evaluating(modules: Iterable[nn.Module]) -> Generator[None]:
    """Runs the block with the modules in evaluation mode, each afterwards as it was."""
    were_training = [(module, module.training) for whole in modules for module in whole.modules()]
    for module, _ in were_training:
        module.training = False
    try:
        yield
    finally:
        for module, was_training in were_training:
            module.training = was_training


def fill(template: str, name: str) -> ConceptPrompt:
    """Returns `template` with `name` put in."""
    placed = template.replace("{a}", "{}") if "{a}" in template else template
    shown = _with_article(name) if "{a}" in template else name
    before, after = placed.split("{}")
    words = name.split()
    first = next((place for place, word in enumerate(words) if word.casefold() not in ARTICLES), 0)
    up_to_name = f"{before}{shown}"
    up_to_first_word = up_to_name.removesuffix(" ".join(words[first + 1 :])).rstrip()
    return ConceptPrompt(f"{up_to_name}{after}", up_to_name, up_to_first_word)


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


def _with_article(name: str) -> str:
    first = name.split()[0].casefold()
    if first in {*ARTICLES, "two", "people", "children"}:
        return name
    return f"{'an' if first[0] in 'aeiou' else 'a'} {name}"
