"""Attacks on a checkpoint, without a judgement: how often somebody with the weights brings a concept back.

Guarantees:
    1. Nothing is judged and nothing is changed: the figures are reported, with exact bounds.
    2. The same attacks with the same budgets as in a judgement: same code, same seeds, same pictures in the store.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.checkpoints import Checkpoint
from flows.judgement import default_sampler
from flows.pipelines import check_alike, load_pipeline
from flows.progress import OnProgress
from flows.questions import Question
from flows.services import Services
from infra.atomic import written_beside
from validation import Detectors, PictureStore, Policy
from validation.attacks.budget import ATTACK, DEFAULT_BUDGETS
from validation.attacks.trial import Field, attack_targets, shown_pictures
from validation.detectors import find_label
from validation.formats import percent_up
from validation.measures import measure
from validation.plan import first_seed_of
from validation.policy import parse_policy
from validation.probe_packs import load_pack
from validation.probes import Probe, Subject
from validation.rendering import render, weights_digest
from validation.robustness import tally

FORMAT = "scapre-attack/1"
LEARNED_FROM = 16
"""Pictures that the base draws of a concept, for attacks that learn from pictures."""


@dataclass(frozen=True)
class Result:
    """One attack on one concept."""

    concept: str
    attack: str
    steps: int
    restarts: int
    words: str
    """What stands for the concept in the prompts."""
    vectors: str
    """Digest of what the words are read as; empty for plain words."""
    pictures: int
    hits_before: int
    """Of the attack on the base."""
    hits_after: int
    """Of the attack on the candidate."""
    hits_random: int
    """Of the candidate with nothing learned."""
    lower: float
    upper: float


def with_attacks(policy: Policy, names: str, **changes: int | None) -> Policy:
    """Returns a policy that runs the named attacks, separated by commas, with its own budgets or the default ones.

    Args:
        policy: The policy without them.
        names: Names of attacks.
        changes: Fields of the budgets to set; None leaves one as it is.

    Raises:
        PolicyError: There is no such attack, or a budget that could not mean anything.
    """
    chosen = dict.fromkeys(name.strip() for name in names.split(",") if name.strip())
    known: Mapping[str, Any] = {**DEFAULT_BUDGETS, **policy.attacks}
    given = {name: value for name, value in changes.items() if value is not None}
    attacks = {name: (known[name].model_dump() if name in known else {"steps": 1}) | given for name in chosen}
    return parse_policy(policy.model_dump(mode="json") | {"attacks": attacks}, source="--attacks")


def attack_checkpoint(
    services: Services,
    *,
    base: Checkpoint,
    candidate: Checkpoint,
    question: Question,
    detectors: Detectors,
    policy: Policy,
    on_progress: OnProgress | None = None,
) -> list[Result]:
    """Returns what every attack of a policy comes to on every concept of a question.

    Raises:
        AttackError: An attack cannot be run on these models.
        UnknownLabelError: The detector has no label for a concept; nothing was drawn.
    """
    for subject in question.targets:
        find_label(detectors.of(subject).labels, subject)
    device = services.settings.resolve_device()
    folders = [checkpoint.materialise(services.cache / "put_together") for checkpoint in (base, candidate)]
    check_alike(*folders)
    before, after = (load_pipeline(folder, device) for folder in folders)
    store, batch = PictureStore(services.pictures), services.settings.render_batch
    field = Field(before, after, default_sampler(before), detectors, store, device, batch)
    seeds = {subject.name: first_seed_of(subject.name, ATTACK, policy) for subject in question.targets}
    table = attack_targets(
        field,
        question.targets,
        budgets=policy.attacks,
        seeds=seeds,
        shown=_shown(field, question.targets, policy),
        on_progress=on_progress,
    )
    results = []
    for subject in question.targets:
        for name, budget in policy.attacks.items():
            own = tally(table, concept=subject.name, attack=name)
            lower, upper = own.bounds(policy.confidence)
            of = (table["concept"] == subject.name) & (table["attack"] == name) & (table["against"] == "candidate")
            row = table[of].iloc[0]
            results.append(
                Result(
                    subject.name,
                    name,
                    budget.steps,
                    budget.restarts,
                    str(row["words"]),
                    str(row["vectors"]),
                    pictures=own.after[1],
                    hits_before=own.before[0],
                    hits_after=own.after[0],
                    hits_random=own.random[0],
                    lower=lower,
                    upper=upper,
                )
            )
    return results


def _shown(field: Field, targets: tuple[Subject, ...], policy: Policy) -> dict[str, list[str]]:
    """Draws the concepts with the base, as a judgement does, and returns the pictures that show them."""
    digest, shown = weights_digest(field.base), {}
    for subject in targets:
        pack = load_pack("style" if subject.head == "style" else "direct")
        prompts, first = pack.prompts(subject), first_seed_of(subject.name, pack.name, policy)
        probes = [
            Probe(prompts[i % len(prompts)], first + i, subject.name, "target", pack.name) for i in range(LEARNED_FROM)
        ]
        addresses = render(
            field.base,
            probes,
            store=field.store,
            model_digest=digest,
            sampler=field.sampler,
            batch_size=field.batch_size,
            device=field.device,
        )
        own = {subject.name: subject}
        measures = measure("base", probes, addresses, subjects=own, detectors=field.detectors, store=field.store)
        shown |= shown_pictures(measures)
    return shown


def table_lines(results: list[Result]) -> list[str]:
    """Returns results as lines for a terminal."""
    lines = [f"{'concept':<20} {'attack':<10} {'steps':>6} {'before':>9} {'after':>9} {'random':>9} {'at most':>8}  by"]
    for own in results:
        counts = [f"{hits}/{own.pictures}" for hits in (own.hits_before, own.hits_after, own.hits_random)]
        by = "a learned vector" if own.vectors else own.words
        cells = "".join(f" {count:>9}" for count in counts)
        lines.append(
            f"{own.concept:<20} {own.attack:<10} {own.steps * own.restarts:>6}{cells} {percent_up(own.upper):>8}  {by}"
        )
    return lines


def describe_results(
    results: list[Result], *, base: Checkpoint, candidate: Checkpoint, detectors: Detectors, policy: Policy
) -> dict[str, Any]:
    """Returns results as plain JSON, with what they were measured on."""
    return {
        "format": FORMAT,
        "base": base.describe(),
        "candidate": candidate.describe(),
        "detectors": detectors.digests(),
        "confidence": policy.confidence,
        "attacks": [asdict(own) for own in results],
    }


def write_results(path: Path, document: Mapping[str, Any]) -> None:
    """Writes results as JSON; a file that is there is replaced."""
    with written_beside(path) as opened:
        opened.write(f"{json.dumps(document, indent=2, sort_keys=True, allow_nan=False)}\n".encode())
