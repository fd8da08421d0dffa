"""Who is near whom: orders retained names around the targets by the geometry of the text encoder alone.

Guarantees:
    1. Nothing depends on the order in which concepts or names were given.
    2. A vocabulary entry that is nearly the same text as a target counts as its synonym and is not retained.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from scapre.concepts import Concept, word_keys
from scapre.embeddings import BARE, EMPTY_PROMPT, PromptEncoder, fill
from scapre.vocabulary import shapeless_names

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
    """Retained names around the targets."""

    found: tuple[str, ...]
    """Vocabulary entries to retain, nearest to a target first."""
    synonyms: tuple[str, ...]
    """Vocabulary entries left out because they are too near to a target."""
    around: Mapping[str, tuple[Near, ...]]
    """Every retained name around each target, nearest first."""


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
    near = _nearness(encoder, concepts, [*named, *proposable])
    nearest = {name: max((row[name] for row in near.values()), default=0.0) for name in proposable}
    ranked = sorted(proposable, key=lambda name: (-nearest[name], name))
    found = [name for name in ranked if nearest[name] <= synonym_cosine][:most]
    retained, is_named = [*named, *found], frozenset(named)
    around = {
        concept.name: tuple(
            Near(name, near[concept.name][name], name in is_named)
            for name in sorted(retained, key=lambda name, row=near[concept.name]: (-row[name], name))
        )
        for concept in concepts
    }
    return Neighbourhood(
        found=tuple(found),
        synonyms=tuple(name for name in ranked if nearest[name] > synonym_cosine),
        around=around,
    )


def choose_anchor(concept: Concept, around: Sequence[Near], *, default: str, closest: float) -> str:
    """Returns what `concept` becomes: its own anchor, else `default`; `nearest` takes the nearest retained name.

    Names the user wants kept come first, if the target is more like them than like the average name: the user vouches
    that the base draws them, and as something else. A name the engine found is a guess. It must not be nearer than
    `closest` nor share a word with the target, since what is nearly the target, or a part of its name, would be drawn
    as the target; and it must name a thing. Unsafe content becomes the empty prompt, since what lies near it is seldom
    better.
    """
    if concept.anchor is not None:
        return concept.anchor
    if default != NEAREST:
        return default
    if concept.kind == "unsafe":
        return EMPTY_PROMPT
    named = (near.name for near in around if near.is_named and near.cosine > 0)
    return next(chain(named, _usable_found(concept, around, closest)), EMPTY_PROMPT)


def _usable_found(concept: Concept, around: Sequence[Near], closest: float) -> Iterator[str]:
    own_words = {word for name in concept.names for word in word_keys(name)}
    return (
        near.name
        for near in around
        if not near.is_named
        and near.cosine <= closest
        and near.name not in shapeless_names()
        and own_words.isdisjoint(word_keys(near.name))
    )


def _nearness(
    encoder: PromptEncoder, concepts: Sequence[Concept], candidates: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Returns the cosine of each concept (its nearest name) and each candidate, the candidates' mean taken off."""
    if not candidates:
        return {concept.name: {} for concept in concepts}
    vectors = torch.stack([_name_vector(encoder, name) for name in candidates])
    centre = vectors.mean(dim=0) if len(candidates) > 1 else torch.zeros_like(vectors[0])
    units = torch.nn.functional.normalize(vectors - centre, dim=1)
    near = {}
    for concept in concepts:
        names = torch.stack([_name_vector(encoder, name) for name in concept.names])
        cosines = torch.nn.functional.normalize(names - centre, dim=1) @ units.mT
        near[concept.name] = dict(zip(candidates, cosines.max(dim=0).values.tolist(), strict=True))
    return near


def _name_vector(encoder: PromptEncoder, name: str) -> Float[Tensor, " d_in"]:
    prompt = encoder[fill(BARE, name).text]
    return prompt.features[prompt.ends].reshape(-1).cpu().double()
