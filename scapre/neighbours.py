"""Who is near whom: orders retained names around the targets by the geometry of the text encoder alone.

Guarantees:
    1. Nothing depends on the order in which concepts or names were given.
    2. A vocabulary entry that is nearly the same text as a target counts as its synonym and is not retained.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scapre.concepts import Concept, word_keys, word_runs
from scapre.embeddings import BARE, EMPTY_PROMPT, PromptEncoder, fill
from scapre.vocabulary import shapeless_names

PLAIN_PICTURE = "a photo"
"""What is drawn in no style."""
KINDS_WITHOUT_NEIGHBOUR = frozenset({"style", "unsafe"})
"""Kinds of targets that never become a retained name by themselves."""
NEAREST = "nearest"
"""Value of the dial `anchor` that lets each target become its nearest retained neighbour."""


@dataclass(frozen=True)
class Near:
    """One retained name beside a target."""

    name: str
    cosine: float
    """Cosine to the target, the mean of all candidates taken off; 1 is the same text to the encoder."""
    is_named: bool
    """Whether the user named it, rather than the engine finding it."""


@dataclass(frozen=True)
class Neighbourhood:
    """Retained names around the targets; a matrix, since both may be thousands."""

    targets: Mapping[str, int]
    """Row of each target."""
    retained: tuple[str, ...]
    """Every retained name, alphabetically: a column each."""
    named: frozenset[str]
    """Those that the user named."""
    cosines: Float[Tensor, "targets retained"]
    found: tuple[str, ...]
    """Vocabulary entries to retain, nearest to a target first."""
    synonyms: tuple[str, ...]
    """Vocabulary entries left out because they are too near to a target."""

    def around(self, target: str) -> Iterator[Near]:
        """Yields every retained name around a target, nearest first, and alphabetically among equals."""
        row = self.cosines[self.targets[target]]
        nearest, columns = row.sort(descending=True, stable=True)
        for cosine, column in zip(nearest.tolist(), columns.tolist(), strict=True):
            yield Near(self.retained[column], cosine, self.retained[column] in self.named)

    def nearest(self, count: int) -> list[tuple[str, Near]]:
        """Returns the `count` pairs of a target and a retained name that are nearest to each other, nearest first."""
        if not self.cosines.numel():
            return []
        least = self.cosines.flatten().topk(min(count, self.cosines.numel())).values[-1]
        names = list(self.targets)
        pairs = [
            (
                names[row],
                Near(self.retained[column], float(self.cosines[row, column]), self.retained[column] in self.named),
            )
            for row, column in (self.cosines >= least).nonzero().tolist()
        ]
        return sorted(pairs, key=lambda pair: (-pair[1].cosine, pair[1].name, pair[0]))[:count]


def find_neighbours(
    encoder: PromptEncoder,
    concepts: Sequence[Concept],
    *,
    named: Sequence[str],
    proposable: Sequence[str],
    most: int,
    synonym_cosine: float,
) -> Neighbourhood:
    """Returns what to retain besides the named, and how near every retained name is to every target.

    Args:
        encoder: where every name was encoded before.
        concepts: the targets.
        named: names the user wants retained.
        proposable: names the vocabulary may add, strangers already left out.
        most: how many of them at most.
        synonym_cosine: vocabulary entries above it are synonyms.
    """
    candidates = [*named, *proposable]
    cosines = _nearness(encoder, concepts, candidates)
    column = {name: place for place, name in enumerate(candidates)}
    most_like = cosines.max(dim=0).values.tolist() if len(cosines) else [0.0] * len(candidates)
    nearest = {name: most_like[column[name]] for name in proposable}
    ranked = sorted(proposable, key=lambda name: (-nearest[name], name))
    found = [name for name in ranked if nearest[name] <= synonym_cosine][:most]
    retained = sorted([*named, *found])
    return Neighbourhood(
        targets={concept.name: row for row, concept in enumerate(concepts)},
        retained=tuple(retained),
        named=frozenset(named),
        cosines=cosines[:, [column[name] for name in retained]],
        found=tuple(found),
        synonyms=tuple(name for name in ranked if nearest[name] > synonym_cosine),
    )


def choose_anchor(
    concept: Concept,
    around: Iterable[Near],
    *,
    default: str,
    closest: float,
    plain: str,
    is_usable: Callable[[str], bool] = lambda _: True,
) -> str:
    """Returns what `concept` becomes: its own anchor, else `default`; `nearest` takes the nearest retained name.

    Names the user wants kept come first, if the target is more like them than like the average name: the user vouches
    that the base draws them, and as something else. One that holds the target's own name ("the tiger") would be drawn
    as the target. A name the engine found is a guess. It must not be nearer than `closest` nor share a word with the
    target, since what is nearly the target, or a part of its name, would be drawn as the target; and it must name a
    thing. A style becomes `plain`, words for a picture in no style: of retained names nobody says which are styles, and
    one that became an object would put it into every picture. Unsafe content becomes the empty prompt, since what lies
    near it is seldom better. Only names that are `is_usable`, as those the tokenizer knows, are chosen.
    """
    if concept.anchor is not None:
        return concept.anchor
    if default != NEAREST:
        return default
    if concept.kind in KINDS_WITHOUT_NEIGHBOUR:
        return plain if concept.kind == "style" else EMPTY_PROMPT
    names = [word_keys(name) for name in concept.names]
    own_words = {word for name in names for word in name}
    guess = None
    for near in around:
        if near.is_named and near.cosine > 0 and word_runs(near.name).isdisjoint(names) and is_usable(near.name):
            return near.name
        if guess is None and _is_good_guess(near, own_words, closest) and is_usable(near.name):
            guess = near.name
    return EMPTY_PROMPT if guess is None else guess


def _is_good_guess(near: Near, own_words: AbstractSet[str], closest: float) -> bool:
    return (
        not near.is_named
        and near.cosine <= closest
        and near.name not in shapeless_names()
        and own_words.isdisjoint(word_keys(near.name))
    )


def _nearness(
    encoder: PromptEncoder, concepts: Sequence[Concept], candidates: Sequence[str]
) -> Float[Tensor, "targets candidates"]:
    """Returns the cosine of each concept (its nearest name) and each candidate, the candidates' mean taken off.

    Names that are one text to the encoder, as those that differ in case only, count once in the mean.
    """
    if not (candidates and concepts):
        return torch.zeros(len(concepts), len(candidates), dtype=torch.float64, device="cpu")
    vectors = torch.stack([_name_vector(encoder, name) for name in candidates])
    distinct = {vector.numpy().tobytes(): vector for vector in vectors}
    centre = torch.stack(list(distinct.values())).mean(dim=0) if len(distinct) > 1 else torch.zeros_like(vectors[0])
    units = torch.nn.functional.normalize(vectors - centre, dim=1)
    rows = []
    for concept in concepts:
        names = torch.stack([_name_vector(encoder, name) for name in concept.names])
        cosines = torch.nn.functional.normalize(names - centre, dim=1) @ units.mT
        rows.append(cosines.max(dim=0).values)
    return torch.stack(rows)


def _name_vector(encoder: PromptEncoder, name: str) -> Float[Tensor, " d_in"]:
    prompt = encoder[fill(BARE, name).text]
    return prompt.features[prompt.ends].reshape(-1).cpu().double()
