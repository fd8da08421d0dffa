"""What can be said before anything is solved: who becomes what, who is at risk, and what cannot work.

Guarantees:
    1. What the text encoder cannot tell apart is refused by name: no closed form can separate it.
    2. What is merely near is a warning with both names and a next step.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Float
from torch import Tensor

from scapre.concepts import Concept, word_keys, word_runs
from scapre.embeddings import BARE, PromptEncoder, concept_prompts, fill
from scapre.errors import InvalidConceptError
from scapre.moments import Passage, Placed, Reading
from scapre.neighbours import KINDS_WITHOUT_NEIGHBOUR, NEAREST, Near

SAME_TEXT = 1e-5
"""Relative distance of two features below which they are one text to the encoder (float32 rounding is 1e-6)."""
AT_RISK_SHOWN = 20
NAMES_SHOWN = 5


@dataclass(frozen=True)
class AtRisk:
    """A retained name that lies near a target."""

    name: str
    target: str
    cosine: float
    """Cosine of the two, the mean of all candidates taken off."""


@dataclass(frozen=True)
class Preflight:
    """What an edit would do, as far as text alone can tell; nothing was solved and nothing changed."""

    anchors: Mapping[str, str]
    """What each target would become; empty is the empty prompt."""
    at_risk: tuple[AtRisk, ...]
    """The retained names nearest to a target, nearest first."""
    retain_named: tuple[str, ...]
    retain_found: tuple[str, ...]
    """Names the engine would retain by itself, nearest to a target first."""
    synonyms_left_out: tuple[str, ...]
    strangers_left_out: tuple[str, ...]
    warnings: tuple[str, ...]


def refuse_unknown_words(
    encoder: PromptEncoder, concepts: Sequence[Concept], named: Sequence[str], *, default_anchor: str
) -> None:
    """Checks what was asked for before anything is encoded, which may take minutes; found anchors are always known.

    Raises:
        InvalidConceptError: the tokenizer has no words for a target's name or for an anchor, or a name stops after the
            first of several vectors that textual inversion taught the tokenizer.
    """
    asked = [("target", name) for concept in concepts for name in concept.names]
    asked += [("anchor", concept.anchor) for concept in concepts if concept.anchor is not None]
    if default_anchor != NEAREST:
        asked.append(("anchor", default_anchor))
    for what, name in asked:
        if not encoder.knows(name):
            raise InvalidConceptError(
                f"{what} {name!r}: expected words that the tokenizers know, found some that one of them reads "
                "like every other word it does not know, or as a mark of its own, so that all of them would change; "
                "write the name in letters it knows"
            )
    for what, name in [*asked, *(("retained name", name) for name in named)]:
        if (whole := encoder.spelled_out(name)) != name:
            raise InvalidConceptError(
                f"{what} {name!r}: expected all vectors of what textual inversion taught, found some; name it {whole!r}"
            )


def examine(encoder: PromptEncoder, passage: Passage, reading: Reading) -> Preflight:
    """Returns what the passage says of the edit to come.

    Raises:
        InvalidConceptError: two names that must be treated differently are one text to the encoder, or the tokenizer
            has no room for one.
    """
    _refuse_long_names(encoder, passage)
    _refuse_same_text(encoder, passage)
    return Preflight(
        anchors={placed.concept.name: placed.anchor for placed in passage.targets},
        at_risk=tuple(AtRisk(one.name, target, one.cosine) for target, one in passage.near.nearest(AT_RISK_SHOWN)),
        retain_named=passage.named,
        retain_found=passage.near.found,
        synonyms_left_out=passage.near.synonyms,
        strangers_left_out=passage.strangers,
        warnings=tuple(_warnings(encoder, passage, reading)),
    )


def _refuse_long_names(encoder: PromptEncoder, passage: Passage) -> None:
    for placed in passage.targets:
        for template, name in concept_prompts(placed.concept):
            for shown in filter(None, (name, placed.anchor)):
                sentence = fill(template, shown)
                if not encoder.has_room_for(sentence.up_to_name):
                    what = "name" if shown == placed.concept.name else "alias" if shown == name else "anchor"
                    raise InvalidConceptError(
                        f"target {placed.concept.name!r}: expected its {what} to fit the text encoder in every "
                        f"sentence, found it cut in {sentence.text!r}; use a shorter {what}"
                    )


def _refuse_same_text(encoder: PromptEncoder, passage: Passage) -> None:
    owners: dict[str, list[Placed]] = {}
    for placed in passage.targets:
        for name in placed.concept.names:
            owners.setdefault(name, []).append(placed)
    anchors = {placed.anchor for placed in passage.targets if placed.anchor}
    same = _same_texts(encoder, {*owners, *passage.named, *anchors})
    for placed in passage.targets:
        for name in placed.concept.names:
            _refuse_same_name(placed, name, same[name], owners=owners, kept=passage.named)
        for forgotten in sorted(same.get(placed.anchor, set()) & owners.keys()):
            if any(other is not placed for other in owners[forgotten]):
                raise InvalidConceptError(
                    f"target {placed.concept.name!r} would become {placed.anchor!r}, which is to be forgotten as well: "
                    "the prompt for the one would draw the other; name an anchor that stays"
                )


def _refuse_same_name(
    placed: Placed, name: str, same: set[str], *, owners: Mapping[str, Sequence[Placed]], kept: Sequence[str]
) -> None:
    for other_name in sorted(same & owners.keys()):
        if rivals := [other for other in owners[other_name] if other is not placed]:
            both = f"{name!r} and {other_name!r} are one text to this encoder"
            if name == other_name:
                both = f"{name!r} is a name of both"
            raise InvalidConceptError(
                f"targets {placed.concept.name!r} and {rivals[0].concept.name!r}: {both}; make them one target with "
                "an alias"
            )
    if retained := sorted(same.intersection(kept)):
        raise InvalidConceptError(
            f"target {name!r} and retained name {retained[0]!r} are one text to this encoder, so no edit can tell "
            "them apart; drop one of the two"
        )
    if placed.anchor in same:
        raise InvalidConceptError(
            f"target {name!r} and its anchor {placed.anchor!r} are one text to this encoder, so nothing would be "
            "forgotten; name another anchor"
        )


def _same_texts(encoder: PromptEncoder, names: Collection[str]) -> dict[str, set[str]]:
    """Returns for each name those of the names, itself included, whose bare features are the same; padding aside."""
    by_shape: dict[torch.Size, dict[str, Float[Tensor, " values"]]] = {}
    for name in sorted(names):
        prompt = encoder[fill(BARE, name).text]
        words = prompt.features[prompt.rows_read(0)].double()
        by_shape.setdefault(words.shape, {})[name] = words.flatten()
    same = {name: {name} for name in names}
    for alike in by_shape.values():
        listed, stacked = list(alike), torch.stack(list(alike.values()))
        near = torch.cdist(stacked, stacked) <= SAME_TEXT * torch.linalg.vector_norm(stacked, dim=1, keepdim=True)
        for one, other in near.nonzero().tolist():
            same[listed[one]].add(listed[other])
    return same


def _warnings(encoder: PromptEncoder, passage: Passage, reading: Reading) -> Iterator[str]:
    named: dict[tuple[str, ...], list[str]] = {}
    for name in passage.named:
        named.setdefault(word_keys(name), []).append(name)
    for placed in passage.targets:
        close = takewhile(lambda near: near.cosine > reading.synonym_cosine, passage.near.around(placed.concept.name))
        yield from _warnings_of(placed, list(close), reading.synonym_cosine)
        yield from _warnings_of_first_words(placed, named)
    names = [*(name for placed in passage.targets for name in placed.concept.names), *passage.named]
    if listed := [name for name in names if "," in name]:
        yield f"{', '.join(map(repr, listed[:NAMES_SHOWN]))}: one name, comma and all; give several names one by one"
    if passage.targets and not passage.kept:
        yield "nothing is retained, so whatever lies near a target may go with it; name what must survive"
    chosen = [
        placed
        for placed in passage.targets
        if placed.concept.anchor is None
        and reading.anchor == NEAREST
        and placed.concept.kind not in KINDS_WITHOUT_NEIGHBOUR
    ]
    found = frozenset(passage.near.found)
    if guessed := [placed for placed in chosen if placed.anchor in found]:
        yield (
            f"{_becoming(guessed)}: found by the engine, and nobody vouches that the model draws it; where it does "
            "not, the target may survive in it: name what must survive, or an anchor"
        )
    if someone := [placed for placed in chosen if placed.concept.kind == "identity" and placed.anchor]:
        yield (
            f"{_becoming(someone)}: whoever asks for the one is shown the other; name an anchor such as 'person' "
            "where that is not wanted"
        )
    if unknown := [name for name in passage.named if not encoder.knows(name)]:
        shown = ", ".join(map(repr, unknown[:NAMES_SHOWN]))
        yield f"{len(unknown)} retained names ({shown}) hold words that a tokenizer reads all alike, unknown or marks"
    if cut := [prompt for prompt in passage.retained["named"] if not encoder.has_room_for(prompt)]:
        yield f"{len(cut)} retained prompts do not fit the text encoder whole and are cut, the first: {cut[0]!r}"


def _warnings_of(placed: Placed, close: Sequence[Near], synonym_cosine: float) -> Iterator[str]:
    name = placed.concept.name
    if named := [near.name for near in close if near.is_named]:
        yield (
            f"{name}: {', '.join(named)} must survive but lies nearer than the encoder can be expected to tell apart "
            f"(cosine above {synonym_cosine:g}); expect residue or damage there, or make it an alias"
        )
    if placed.anchor in {near.name for near in close}:
        yield f"{name}: its anchor {placed.anchor!r} is nearly the same text; name a more distant one"
    if not word_runs(placed.anchor).isdisjoint(word_keys(own) for own in placed.concept.names):
        yield f"{name}: its anchor {placed.anchor!r} holds its own name and would keep it alive; name another one"


def _becoming(targets: Sequence[Placed]) -> str:
    shown = [f"{placed.concept.name!r} becomes {placed.anchor!r}" for placed in targets[:NAMES_SHOWN]]
    more = [f"{len(targets) - NAMES_SHOWN} more likewise"] if len(targets) > NAMES_SHOWN else []
    return ", ".join([*shown, *more])


def _warnings_of_first_words(placed: Placed, named: Mapping[tuple[str, ...], Sequence[str]]) -> Iterator[str]:
    for own in placed.concept.names:
        words = word_keys(own)
        if kept := [name for end in range(1, len(words)) for name in named.get(words[:end], ())]:
            yield (
                f"{placed.concept.name}: {own!r} begins with {', '.join(map(repr, kept))}, which must survive and may "
                "keep it alive; look at what is left of the target, or do not retain that name"
            )
