"""Statistics made of random numbers that look like CLIP's: one long mean, few strong directions, a long weak tail.

A slot's feature is the mean of all text, plus what its sentence adds, plus what its concept adds, plus noise; each part
has the spectrum of a power law. Coordinates are those of that spectrum: rows of random weights have no preference.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scapre.concepts import Concept
from scapre.moments import NameEnds, Placed, Retained, Statistics, TargetSlots
from scapre.neighbours import Near
from scapre.row_products import cross_moments

FEATURE_NORM = 27.0
MEAN_SHARE, SENTENCE_SHARE, CONCEPT_SHARE, SLOT_SHARE, NOISE_SHARE = 1.0, 0.35, 0.5, 0.2, 0.15
START_SLOTS, WORD_SLOTS = 1, 2
"""Slots of a retained prompt before its name: the start token, and words of the sentence."""


@dataclass(frozen=True)
class SyntheticText:
    """What an encoder would have given: features slot by slot."""

    targets: Float[Tensor, "targets slots d_in"]
    neutrals: Float[Tensor, "targets slots d_in"]
    anchor: Float[Tensor, "slots d_in"]
    """One for all targets, as the empty prompt is."""
    named: Float[Tensor, "named d_in"]
    found: Float[Tensor, "found d_in"]
    general: Float[Tensor, "general d_in"]


@dataclass(frozen=True)
class TextShape:
    """How much text there is."""

    targets: int
    width: int = 768
    sentences: int = 8
    padding: int = 4
    named: int = 20
    found: int = 1162
    """Names found in the vocabulary, two sentences each."""

    @property
    def slots(self) -> int:
        """Slots of one sentence from the last token of a name on: that token, the end token, the padding."""
        return 2 + self.padding


class _Source:
    def __init__(self, shape: TextShape, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        decay = torch.arange(1, shape.width + 1, dtype=torch.float64) ** -0.5
        self._decay = FEATURE_NORM * decay / torch.linalg.vector_norm(decay)

    def normal(self, *size: int) -> Tensor:
        drawn = torch.randn(*size, len(self._decay), generator=self._generator, dtype=torch.float64)
        return drawn.mul_(self._decay)


def synthetic_text(shape: TextShape, *, seed: int) -> SyntheticText:
    """Returns random text; the randomness comes from `seed` alone."""
    source, slots = _Source(shape, seed), shape.slots
    mean = MEAN_SHARE * (source.normal() + 0.3 * source.normal(slots))
    sentences = SENTENCE_SHARE * source.normal(shape.sentences, slots)
    gains = torch.tensor([1.0, 0.8, *[0.6] * shape.padding], dtype=torch.float64).unsqueeze(1)

    def names(count: int, chosen: Tensor) -> Tensor:
        fixed = CONCEPT_SHARE * gains * source.normal(count, 1) + SLOT_SHARE * source.normal(count, slots)
        drawn = source.normal(count, chosen.shape[-1], slots).mul_(NOISE_SHARE)
        return drawn.add_((mean + fixed).unsqueeze(1)).add_(sentences[chosen])

    every = torch.arange(shape.sentences)
    start = source.normal(START_SLOTS)
    words = MEAN_SHARE * source.normal() + SENTENCE_SHARE * source.normal(shape.sentences, WORD_SLOTS)

    def prompts(count: int, chosen: Tensor) -> Tensor:
        held = names(count, chosen)
        before = words[chosen].expand(*held.shape[:2], WORD_SLOTS, shape.width)
        opening = start.expand(*held.shape[:2], START_SLOTS, shape.width)
        return torch.cat([opening, before, held], dim=2).flatten(0, 2)

    second = 1 + torch.arange(shape.found) % max(shape.sentences - 1, 1)
    spread = torch.stack([torch.zeros_like(second), second % shape.sentences], dim=1)
    return SyntheticText(
        targets=names(shape.targets, every.expand(shape.targets, -1)).flatten(1, 2),
        neutrals=names(shape.targets, every.expand(shape.targets, -1)).flatten(1, 2),
        anchor=mean.repeat(shape.sentences, 1),
        named=prompts(shape.named, every.expand(shape.named, -1)),
        found=prompts(shape.found, spread),
        general=torch.cat([start, mean]),
    )


def synthetic_statistics(text: SyntheticText) -> Statistics:
    """Returns the statistics the engine would have gathered of `text`."""
    count, slots = text.targets.shape[:2]
    weights = torch.full((slots,), 1.0 / slots, dtype=torch.float64)
    targets = tuple(
        TargetSlots(
            Placed(Concept(f"concept {k}"), "", (Near("neighbour", 0.5, is_named=False),)),
            text.targets[k],
            text.anchor,
            weights,
            (text.neutrals[k],),
        )
        for k in range(count)
    )
    groups = {"named": text.named, "found": text.found, "general": text.general}
    retained = Retained(
        sums={group: cross_moments((features, features))[0] for group, features in groups.items()},
        features=groups,
        counts={group: len(features) for group, features in groups.items()},
    )
    ends = NameEnds(text.targets[:, -1], torch.cat([text.general[-1:], text.neutrals[:, -1]]))
    return Statistics(targets, retained, ends)
