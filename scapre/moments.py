"""What the closed forms need to know of targets and retained text: slots, anchors, neighbours, second moments.

Guarantees:
    1. Nothing depends on the order in which concepts or names were given.
    2. The empty prompt, which guidance subtracts from every other, is always among the retained text.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from scapre.concepts import Concept, word_keys, word_runs
from scapre.embeddings import (
    BARE,
    EMPTY_PROMPT,
    TEMPLATES,
    ConceptPrompt,
    PromptEncoder,
    concept_prompts,
    fill,
    spread_templates,
    templates_of,
)
from scapre.neighbours import NEAREST, PLAIN_PICTURE, Near, Neighbourhood, choose_anchor, find_neighbours
from scapre.row_products import cross_moments, row_blocks
from scapre.slots import Kept, aligned_slot

GROUP_SHARES: Mapping[str, float] = {"named": 0.45, "found": 0.45, "general": 0.1}
"""Weight of each group of retained text in K0 while no more slots are named than found; see `Retained.shares`."""


@dataclass(frozen=True)
class Reading:
    """How the text is read; all of it comes from the dials."""

    anchor: str = NEAREST
    padding_slots: int = 4
    vocabulary: int = 2000
    neighbours: int = 1
    synonym_cosine: float = 0.9
    anchor_cosine: float = 0.8
    longest_word: int = 1


@dataclass(frozen=True)
class Placed:
    """A target among retained names."""

    concept: Concept
    anchor: str
    """What the target becomes; empty is the empty prompt."""
    neighbours: tuple[Near, ...]
    """Nearest retained names, nearest first."""

    @property
    def sentences(self) -> list[tuple[ConceptPrompt, list[str]]]:
        """Each sentence of the target, with the anchor's and then each neighbour's in the same words."""
        found = []
        for template, name in concept_prompts(self.concept):
            anchor = fill(template, self.anchor).text if self.anchor else EMPTY_PROMPT
            neighbours = [fill(template, near.name).text for near in self.neighbours]
            found.append((fill(template, name), [anchor, *neighbours]))
        return found

    @property
    def prompts(self) -> Iterator[str]:
        """Every sentence that is aligned with another, and those others."""
        for sentence, others in self.sentences:
            yield from (sentence.text, *others)


@dataclass(frozen=True)
class Passage:
    """All text that an edit is computed from."""

    targets: tuple[Placed, ...]
    named: tuple[str, ...]
    near: Neighbourhood
    strangers: tuple[str, ...]
    """Vocabulary entries left out because the tokenizer spells them out."""
    retained: Mapping[str, Sequence[str]]
    """Sentences of each group of retained text."""

    @property
    def kept(self) -> tuple[str, ...]:
        """Every retained name, named or found."""
        return *self.named, *self.near.found


@dataclass(frozen=True)
class Outputs:
    """What the layer of a memory gives out, slot by slot: all that a model reads of it."""

    target: Float[Tensor, "slots d"]
    anchor: Float[Tensor, "slots d"]
    neutral: Float[Tensor, "slots d"]
    """For the nearest neighbour."""

    @property
    def shifts(self) -> Float[Tensor, "slots d"]:
        """By how much the target's outputs are to change."""
        return self.anchor - self.target


@dataclass(frozen=True)
class TargetSlots:
    """The slots that carry one target concept."""

    placed: Placed
    features: Float[Tensor, "slots d_in"]
    anchors: Float[Tensor, "slots d_in"]
    """Features of the anchor, slot by slot."""
    weights: Float[Tensor, " slots"]
    """Weights ω, which sum to 1."""
    neutrals: tuple[Float[Tensor, "slots d_in"], ...]
    """Features of each neighbour, slot by slot; the anchor's when nothing is retained."""
    outputs: "Outputs | None" = None
    """What a memory's layer gives out there, where it is a memory that is read (`scapre.memories`)."""

    @property
    def name(self) -> str:
        """The target's name."""
        return self.placed.concept.name


TARGETS_READ_AT_ONCE, SENTENCES_READ_AT_ONCE = 64, 1024
"""Targets, and retained sentences, whose memories are held at the same time."""
TARGETS_AT_ONCE = 64
"""Targets whose slots are laid side by side: enough for one fast product, few enough for memory at any number."""


def target_batches(targets: Sequence[TargetSlots]) -> Iterator[tuple[slice, Sequence[TargetSlots]]]:
    """Yields the targets so many at once that products are fast and memory is bounded, each batch with its place."""
    for first in range(0, len(targets), TARGETS_AT_ONCE):
        batch = targets[first : first + TARGETS_AT_ONCE]
        yield slice(first, first + len(batch)), batch


@dataclass(frozen=True)
class Retained:
    """Retained text."""

    sums: Mapping[str, Float[Tensor, "d_in d_in"]]
    """Σ c cᵀ over the slots of each group."""
    features: Mapping[str, Float[Tensor, "_ d_in"]]
    """The slots themselves, group by group; none where only their sums are wanted."""
    counts: Mapping[str, int]
    """Number of slots of each group."""
    output_energies: Mapping[str, float] = field(default_factory=dict)
    """Σ ‖o‖² over the slots of each group, where a memory is read."""

    @property
    def second_moment(self) -> Float[Tensor, "d_in d_in"]:
        """K0: the mean of c cᵀ over retained slots, groups weighted by `shares`."""
        return sum(
            (share * self.sums[group] / self.counts[group] for group, share in self.shares.items()),
            start=torch.zeros_like(self.sums["general"]),
        )

    @property
    def output_energy(self) -> float:
        """Mean of ‖o‖² over retained slots, weighted likewise."""
        return sum(share * self.output_energies[group] / self.counts[group] for group, share in self.shares.items())

    @property
    def shares(self) -> Mapping[str, float]:
        """Share of each group that is not empty; no named slot counts less than a found one, however many are named."""
        shares = {group: GROUP_SHARES[group] for group, count in self.counts.items() if count}
        if {"named", "found"} <= shares.keys():
            shares["named"] *= max(1.0, self.counts["named"] / self.counts["found"])
        total = sum(shares.values())
        return {group: share / total for group, share in shares.items()}


@dataclass(frozen=True)
class NameEnds:
    """Where bare names end: one feature for each, the mean over text encoders that are read one after another."""

    targets: Float[Tensor, "targets d_in"]
    retained: Float[Tensor, "names d_in"]
    """Names that somebody named or the engine found, and the empty prompt."""


@dataclass(frozen=True)
class Statistics:
    """Everything text tells the solvers."""

    targets: tuple[TargetSlots, ...]
    retained: Retained
    ends: NameEnds

    def weighted(self, factors: Sequence[float]) -> "Statistics":
        """Returns the same with each target's ω multiplied by its factor."""
        targets = (
            replace(target, weights=factor * target.weights)
            for target, factor in zip(self.targets, factors, strict=True)
        )
        return replace(self, targets=tuple(targets))


def read_text(
    encoder: PromptEncoder,
    concepts: Sequence[Concept],
    *,
    named: Sequence[str],
    proposable: Sequence[str],
    reading: Reading,
) -> Passage:
    """Chooses anchors, neighbours and retained text.

    Names are encoded bare, which tells how near they are; no other sentence is read.
    """
    familiar, strangers = _part_strangers(encoder, proposable if reading.vocabulary else (), reading.longest_word)
    names = [*named, *familiar, *(name for concept in concepts for name in concept.names)]
    encoder.encode((fill(BARE, name).text for name in names), padding=reading.padding_slots)
    near = find_neighbours(
        encoder,
        concepts,
        named=named,
        proposable=familiar,
        most=reading.vocabulary,
        synonym_cosine=reading.synonym_cosine,
    )
    plain = _plain_picture(encoder, concepts, reading.longest_word)
    passage = Passage(
        targets=tuple(_place(encoder, concept, near, reading, plain) for concept in concepts),
        named=tuple(named),
        near=near,
        strangers=strangers,
        retained={
            "named": _sentences(concepts, named, spread=False),
            "found": _sentences(concepts, near.found, spread=True),
            "general": [EMPTY_PROMPT],
        },
    )
    anchors = (fill(BARE, placed.anchor).text for placed in passage.targets)
    encoder.encode(anchors, padding=reading.padding_slots)
    return passage


def encode_sentences(encoder: PromptEncoder, passage: Passage, *, padding_slots: int) -> None:
    """Encodes every sentence that `gather_statistics` reads."""
    retained = frozenset(itertools.chain(*passage.retained.values()))
    _encode_aligned(encoder, passage.targets, padding_slots, read_alone=retained)
    encoder.encode(retained, padding=padding_slots)


def _encode_aligned(
    encoder: PromptEncoder, targets: Sequence[Placed], padding: int, *, read_alone: Collection[str] = ()
) -> None:
    """Encodes the targets' sentences, and of those beside them what is aligned with these.

    Padding is aligned with padding at the same place, and where it begins depends on the sentence. Those beside that
    are also in `read_alone` are encoded for both uses at once.
    """
    pairs = [(sentence.text, other) for placed in targets for sentence, others in placed.sentences for other in others]
    encoder.encode((text for text, _ in pairs), padding=padding)
    wanted: list[tuple[str, Kept]] = [(other, encoder[text].runs) for text, other in pairs]
    encoder.encode_as([*wanted, *((other, padding) for _, other in pairs if other in read_alone)])


def _part_strangers(
    encoder: PromptEncoder, names: Sequence[str], longest: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of which the tokenizer knows every word and cuts none into more than `longest` tokens.

    And the others, whose features say more about spelling than about a thing; 0 lets all in.
    """
    if not longest:
        return tuple(names), ()
    tokens = encoder.longest_words(names)
    familiar = {name for name in names if tokens[name] <= longest and encoder.knows(name)}
    return tuple(n for n in names if n in familiar), tuple(n for n in names if n not in familiar)


def _plain_picture(encoder: PromptEncoder, concepts: Sequence[Concept], longest: int) -> str:
    """Returns words for a picture in no style, the empty prompt if they are unfamiliar or some are to be forgotten."""
    familiar, _ = _part_strangers(encoder, [PLAIN_PICTURE], longest)
    forgotten = {word_keys(name) for concept in concepts for name in concept.names}
    is_known = familiar and encoder.knows(PLAIN_PICTURE)
    return PLAIN_PICTURE if is_known and forgotten.isdisjoint(word_runs(PLAIN_PICTURE)) else EMPTY_PROMPT


def _place(encoder: PromptEncoder, concept: Concept, near: Neighbourhood, reading: Reading, plain: str) -> Placed:
    def is_usable(name: str) -> bool:
        sentences = [fill(template, name).up_to_name for template in TEMPLATES[concept.kind]]
        return encoder.knows(name) and all(map(encoder.has_room_for, sentences))

    # whoever names what must survive names the look-alikes
    rivals = (one for one in near.around(concept.name) if one.is_named or not near.named)
    anchor = choose_anchor(
        concept,
        near.around(concept.name),
        default=reading.anchor,
        closest=reading.anchor_cosine,
        plain=plain,
        is_usable=is_usable,
    )
    return Placed(concept, anchor, tuple(islice(rivals, reading.neighbours)))


def gather_statistics(
    encoder: PromptEncoder, passage: Passage, *, padding_slots: int, device: torch.device
) -> Statistics:
    """Returns slots, anchors, neighbours and second moments, in float64 on `device`."""
    targets = tuple(_target_slots(encoder, placed, padding_slots, device) for placed in passage.targets)
    rows = {
        group: _retained_rows(encoder, prompts, padding_slots, device) for group, prompts in passage.retained.items()
    }
    retained = Retained(
        sums={group: cross_moments((features, features))[0] for group, features in rows.items()},
        features=rows,
        counts={group: len(features) for group, features in rows.items()},
    )
    ends = NameEnds(
        _ends(encoder, [fill(BARE, placed.concept.name).text for placed in passage.targets], like=rows["general"]),
        _ends(encoder, [EMPTY_PROMPT, *(fill(BARE, name).text for name in passage.kept)], like=rows["general"]),
    )
    return Statistics(targets, retained, ends)


def gather_memories(
    encoder: PromptEncoder, passage: Passage, *, padding_slots: int, device: torch.device, width: int
) -> Statistics:
    """Returns slots and second moments of a memory, which `encoder` reads, as `gather_statistics` does of features.

    What the encoder gives beyond `width` are outputs of its layer. Memories are several times as wide as features: a
    part of the text is read at a time, and let go. Ends of names are left out.
    """
    targets: list[TargetSlots] = []
    for batch in _batches_of_memories(passage):
        _encode_aligned(encoder, batch, padding_slots)
        targets += [_memory_slots(_target_slots(encoder, one, padding_slots, device), width) for one in batch]
        encoder.forget()
    retained = {group: list(_parts_of_memories(prompts)) for group, prompts in passage.retained.items()}
    sums: dict[str, Tensor] = {}
    counts, energies = dict.fromkeys(retained, 0), dict.fromkeys(retained, 0.0)
    for group, parts in retained.items():
        sums[group] = torch.zeros(width, width, dtype=torch.float64, device=device)
        for part in parts:
            encoder.encode(part, padding=padding_slots)
            rows = _retained_rows(encoder, part, padding_slots, device)
            heard = rows[:, :width]
            sums[group] += cross_moments((heard, heard))[0]
            energies[group] += float(rows[:, width:].square().sum())
            counts[group] += len(rows)
            encoder.forget()
    nothing = torch.zeros(0, width, dtype=torch.float64, device=device)
    return Statistics(tuple(targets), Retained(sums, {}, counts, energies), NameEnds(nothing, nothing))


def count_of_memories(passage: Passage) -> int:
    """Returns how many prompts `gather_memories` reads."""
    batches = ({text for one in batch for text in one.prompts} for batch in _batches_of_memories(passage))
    parts = (set(part) for prompts in passage.retained.values() for part in _parts_of_memories(prompts))
    return sum(map(len, batches)) + sum(map(len, parts))


def _batches_of_memories(passage: Passage) -> Iterator[Sequence[Placed]]:
    return (passage.targets[block] for block in row_blocks(len(passage.targets), TARGETS_READ_AT_ONCE))


def _parts_of_memories(prompts: Sequence[str]) -> Iterator[Sequence[str]]:
    ordered = sorted(prompts)
    return (ordered[block] for block in row_blocks(len(ordered), SENTENCES_READ_AT_ONCE))


def _memory_slots(whole: TargetSlots, width: int) -> TargetSlots:
    """Returns slots whose features end at `width`, and the outputs that stand behind."""
    features, anchors, *neutrals = (
        part[:, :width].clone() for part in (whole.features, whole.anchors, *whole.neutrals)
    )
    outputs = Outputs(*(part[:, width:].clone() for part in (whole.features, whole.anchors, whole.neutrals[0])))
    return TargetSlots(whole.placed, features, anchors, whole.weights, tuple(neutrals), outputs)


def _sentences(concepts: Sequence[Concept], names: Sequence[str], *, spread: bool) -> list[str]:
    """Returns the sentences that protect `names`: all of the targets' sentences, or two for each of many names."""
    templates = templates_of(concepts)
    chosen = {name: spread_templates(name, templates) if spread else templates for name in names}
    return [fill(template, name).text for name in names for template in chosen[name]]


def _target_slots(encoder: PromptEncoder, placed: Placed, padding: int, device: torch.device) -> TargetSlots:
    features, weights = [], []
    others: list[list[Tensor]] = [[] for _ in range(1 + len(placed.neighbours))]  # the anchor, then the neighbours
    pairs = placed.sentences
    for sentence, other_texts in pairs:
        prompt = encoder[sentence.text]
        slots = encoder.target_slots(sentence, padding)
        features.append(prompt.features[slots])
        for column, text in enumerate(other_texts):
            other = encoder.beside(text, prompt)
            others[column].append(other.features[[aligned_slot(slot, prompt, other) for slot in slots]])
        weights.append(torch.full((len(slots),), 1.0 / (len(slots) * len(pairs)), dtype=torch.float64, device=device))
    target, anchors, *neutrals = (torch.cat(parts).to(device, torch.float64) for parts in (features, *others))
    return TargetSlots(placed, target, anchors, torch.cat(weights), tuple(neutrals) or (anchors,))


def _ends(
    encoder: PromptEncoder, prompts: Sequence[str], *, like: Float[Tensor, "_ d_in"]
) -> Float[Tensor, "prompts d_in"]:
    encoded = [encoder[prompt] for prompt in prompts]
    ends = [prompt.features[prompt.ends].to(like).mean(dim=0) for prompt in encoded]
    return torch.stack(ends) if ends else like[:0]


def _retained_rows(
    encoder: PromptEncoder, prompts: Sequence[str], padding: int, device: torch.device
) -> Float[Tensor, "slots d_in"]:
    encoded = [encoder[prompt] for prompt in sorted(prompts)]  # a sum in another order has other last bits
    read = [prompt.rows_read(padding) for prompt in encoded]
    width = encoded[0].features.shape[1] if encoded else encoder[EMPTY_PROMPT].features.shape[1]
    rows = torch.empty(sum(map(len, read)), width, dtype=torch.float64, device=device)
    places = rows.split([len(chosen) for chosen in read])
    for place, prompt, chosen in zip(places, encoded, read, strict=True):
        place.copy_(prompt.features if len(chosen) == len(prompt.features) else prompt.features[chosen])
    return rows
