"""What the closed forms need to know of targets and retained text: slots, anchors, neighbours, second moments.

Guarantees:
    1. Nothing depends on the order in which concepts or names were given.
    2. A vocabulary entry that is nearly the same text as a target counts as its synonym and is not retained.
    3. The empty prompt, which guidance subtracts from every other, is always among the retained text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from scapre.concepts import Concept
from scapre.embeddings import (
    BARE,
    EMPTY_PROMPT,
    EncodedPrompt,
    PromptEncoder,
    aligned_slot,
    concept_prompts,
    fill,
    spread_templates,
    templates_of,
)

GROUP_SHARES: Mapping[str, float] = {"named": 0.45, "found": 0.45, "general": 0.1}
"""Share of each group of retained text in K0, rescaled to 1 over the groups that are not empty."""


@dataclass(frozen=True)
class Reading:
    """How the text is read; all of it comes from the dials."""

    anchor: str
    padding_slots: int
    vocabulary: int
    neighbours: int
    synonym_cosine: float


@dataclass(frozen=True)
class TargetSlots:
    """The slots that carry one target concept."""

    concept: Concept
    features: Float[Tensor, "slots d_in"]
    anchors: Float[Tensor, "slots d_in"]
    """Features of the anchor, slot by slot."""
    weights: Float[Tensor, " slots"]
    """Weights ω, which sum to 1."""
    neighbours: tuple[str, ...]
    """Nearest retained names, nearest first."""
    neutrals: tuple[Float[Tensor, "slots d_in"], ...]
    """Features of each neighbour, slot by slot; the anchor's when nothing is retained."""


@dataclass(frozen=True)
class Retained:
    """Retained text."""

    named: tuple[str, ...]
    found: tuple[str, ...]
    """Names found in the vocabulary, nearest to a target first."""
    sums: Mapping[str, Float[Tensor, "d_in d_in"]]
    """Σ c cᵀ over the slots of each group."""
    counts: Mapping[str, int]
    """Number of slots of each group."""
    synonyms: tuple[str, ...]
    """Vocabulary entries left out because they are too near to a target."""

    @property
    def second_moment(self) -> Float[Tensor, "d_in d_in"]:
        """K0: the mean of c cᵀ over retained slots, groups weighted by `GROUP_SHARES`."""
        shares = {group: GROUP_SHARES[group] for group, count in self.counts.items() if count}
        total = sum(shares.values())
        return sum(
            (share / total * self.sums[group] / self.counts[group] for group, share in shares.items()),
            start=torch.zeros_like(self.sums["general"]),
        )


@dataclass(frozen=True)
class Statistics:
    """Everything text tells the solvers."""

    targets: tuple[TargetSlots, ...]
    retained: Retained
    warnings: tuple[str, ...]


def encode_text(
    encoder: PromptEncoder,
    concepts: Sequence[Concept],
    *,
    named: Sequence[str],
    proposable: Sequence[str],
    reading: Reading,
) -> None:
    """Encodes every prompt that `gather_statistics` will ask for, except the neighbours in the targets' sentences."""
    prompts = [EMPTY_PROMPT]
    for concept in concepts:
        for template, name in concept_prompts(concept):
            prompts += [fill(template, name).text, _anchor_prompt(concept, template, reading.anchor)]
    prompts += _sentences(concepts, named, spread=False)
    encoder.encode(prompts)
    found = _sentences(concepts, proposable if reading.vocabulary else (), spread=True)
    encoder.encode(found, padding=reading.padding_slots)


def gather_statistics(
    encoder: PromptEncoder,
    concepts: Sequence[Concept],
    *,
    named: Sequence[str],
    proposable: Sequence[str],
    reading: Reading,
    device: torch.device,
) -> Statistics:
    """Returns slots, anchors, neighbours and second moments, in float64 on `device`."""
    candidates = [*named, *(proposable if reading.vocabulary else ())]
    near = _nearness(encoder, concepts, candidates)
    found, synonyms = _select_found(near, candidates, first_found=len(named), reading=reading)
    # whoever names what must survive names the look-alikes; what is found may be near by accident of its spelling
    rivals = range(len(named)) if named else found
    warnings: list[str] = []
    targets = []
    for row, concept in enumerate(concepts):
        ranked = sorted(rivals, key=lambda column, row=row: (-near[row][column], candidates[column]))
        neighbours = tuple(candidates[column] for column in ranked[: reading.neighbours])
        if not neighbours:
            warnings.append(f"{concept.name}: nothing is retained, so relevance is measured against the anchor")
        encoder.encode(fill(template, name).text for template, _ in concept_prompts(concept) for name in neighbours)
        targets.append(_target_slots(encoder, concept, neighbours, reading=reading, device=device))
    groups = {
        "named": _sentences(concepts, named, spread=False),
        "found": _sentences(concepts, [candidates[column] for column in found], spread=True),
        "general": [EMPTY_PROMPT],
    }
    if cut := [prompt for prompts in groups.values() for prompt in prompts if encoder[prompt].is_full]:
        warnings.append(f"{len(cut)} retained prompts fill the whole context and may be cut, the first: {cut[0]!r}")
    rows = {group: _retained_rows(encoder, prompts, reading.padding_slots, device) for group, prompts in groups.items()}
    width = rows["general"].shape[1]
    retained = Retained(
        named=tuple(named),
        found=tuple(candidates[column] for column in found),
        sums={
            group: features.mT @ features if len(features) else torch.zeros(width, width).to(features)
            for group, features in rows.items()
        },
        counts={group: len(features) for group, features in rows.items()},
        synonyms=tuple(candidates[column] for column in synonyms),
    )
    return Statistics(tuple(targets), retained, tuple(warnings))


def _sentences(concepts: Sequence[Concept], names: Sequence[str], *, spread: bool) -> list[str]:
    """Returns the sentences that protect `names`: all of the targets' sentences, or two for each of many names."""
    templates = templates_of(concepts)
    chosen = {name: spread_templates(name, templates) if spread else templates for name in names}
    return [fill(template, name).text for name in names for template in chosen[name]]


def _anchor_prompt(concept: Concept, template: str, default: str) -> str:
    anchor = default if concept.anchor is None else concept.anchor
    return fill(template, anchor).text if anchor else EMPTY_PROMPT


def _target_slots(
    encoder: PromptEncoder, concept: Concept, neighbours: tuple[str, ...], *, reading: Reading, device: torch.device
) -> TargetSlots:
    features, anchors, weights = [], [], []
    neutrals: list[list[Tensor]] = [[] for _ in neighbours]
    pairs = concept_prompts(concept)
    for template, name in pairs:
        filled = fill(template, name)
        prompt = encoder[filled.text]
        slots = encoder.target_slots(filled, reading.padding_slots)

        def aligned(other: EncodedPrompt, slots: list[int] = slots, prompt: EncodedPrompt = prompt) -> Tensor:
            return other.features[[aligned_slot(slot, prompt, other) for slot in slots]]

        features.append(prompt.features[slots])
        anchors.append(aligned(encoder[_anchor_prompt(concept, template, reading.anchor)]))
        for column, neighbour in enumerate(neighbours):
            neutrals[column].append(aligned(encoder[fill(template, neighbour).text]))
        weights.append(torch.full((len(slots),), 1.0 / (len(slots) * len(pairs)), dtype=torch.float64, device=device))
    together = [torch.cat(parts).to(device, torch.float64) for parts in (features, anchors, *neutrals)]
    return TargetSlots(
        concept, together[0], together[1], torch.cat(weights), neighbours, tuple(together[2:]) or (together[1],)
    )


def _nearness(encoder: PromptEncoder, concepts: Sequence[Concept], candidates: Sequence[str]) -> list[list[float]]:
    """Returns the cosine of each concept (its nearest name) and each candidate, the candidates' mean taken off."""
    if not candidates:
        return [[] for _ in concepts]
    vectors = torch.stack([_name_vector(encoder, name) for name in candidates])
    centre = vectors.mean(dim=0) if len(candidates) > 1 else torch.zeros_like(vectors[0])
    units = torch.nn.functional.normalize(vectors - centre, dim=1)
    near = []
    for concept in concepts:
        names = torch.stack([_name_vector(encoder, name) for name in concept.names])
        cosines = torch.nn.functional.normalize(names - centre, dim=1) @ units.mT
        near.append(cosines.max(dim=0).values.tolist())
    return near


def _name_vector(encoder: PromptEncoder, name: str) -> Float[Tensor, " d_in"]:
    prompt = encoder[fill(BARE, name).text]
    return prompt.features[prompt.ends].reshape(-1).cpu().double()


def _select_found(
    near: list[list[float]], candidates: Sequence[str], *, first_found: int, reading: Reading
) -> tuple[list[int], list[int]]:
    columns = range(first_found, len(candidates))
    nearest = {column: max((row[column] for row in near), default=0.0) for column in columns}
    ranked = sorted(columns, key=lambda column: (-nearest[column], candidates[column]))
    synonyms = [column for column in ranked if nearest[column] > reading.synonym_cosine]
    return [column for column in ranked if nearest[column] <= reading.synonym_cosine][: reading.vocabulary], synonyms


def _retained_rows(
    encoder: PromptEncoder, prompts: Sequence[str], padding: int, device: torch.device
) -> Float[Tensor, "slots d_in"]:
    rows = []
    for prompt in sorted(prompts):  # a sum in another order has other last bits
        encoded = encoder[prompt]
        rows.append(encoded.features[encoded.rows_read(padding)])
    if not rows:
        return encoder[EMPTY_PROMPT].features[:0].to(device, torch.float64)
    return torch.cat(rows).to(device, torch.float64)
