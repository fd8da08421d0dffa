"""A trial: every attack on every target, against the model before, the model after, and with nothing learned.

Guarantees:
    1. Pictures are drawn after an attack has chosen its attempt by its own aim; no detector is asked before.
    2. Before, after and random are drawn with the same seeds, which no other probe has, and numbers fixed beforehand.
    3. A picture is stored under the vectors that it was drawn with: it is never taken for a plain one, and a trial that
       is run again draws none twice.
    4. A model whose weights are not what they were is an error, whatever the attack.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import pandas as pd

from validation.attacks.base import Attack, AttackError, Attempt, Goal, OnStep
from validation.attacks.budget import ATTACK, CONTROL_ATTEMPTS, Against, AttackName, Budget, drawn_pictures
from validation.attacks.reading import denoiser_of
from validation.attacks.registry import ATTACKS
from validation.attacks.vectors import read_as
from validation.detectors import Detectors
from validation.judgement import ATTACK_COLUMNS
from validation.measures import measure
from validation.probe_packs import load_pack
from validation.probes import Probe, Subject, sha256_of
from validation.rendering import PictureStore, Pipeline, Progress, Sampler, render, weights_digest


@dataclass(frozen=True)
class Field:
    """What is attacked, and how pictures are drawn and seen."""

    base: Pipeline
    candidate: Pipeline
    sampler: Sampler
    detectors: Detectors
    store: PictureStore
    device: str = "cpu"
    batch_size: int = 32


def units(budgets: Mapping[AttackName, Budget], *, targets: int) -> int:
    """Returns how many steps and pictures a trial takes, for a progress bar."""
    return targets * sum(2 * own.steps * own.restarts + 3 * drawn_pictures(own) for own in budgets.values())


def shown_pictures(measures: pd.DataFrame) -> dict[str, list[str]]:
    """Returns, by target, addresses of the base's pictures of it: those that show it, or all where none does."""
    own = measures[(measures["model"] == "base") & (measures["role"] == "target")]
    return {
        str(name): (group[group["is_hit"]] if group["is_hit"].any() else group)["address"].tolist()
        for name, group in own.groupby("concept", sort=False)
    }


def attack_targets(
    field: Field,
    targets: Sequence[Subject],
    *,
    budgets: Mapping[AttackName, Budget],
    seeds: Mapping[str, int],
    shown: Mapping[str, Sequence[str]],
    on_progress: Progress | None = None,
) -> pd.DataFrame:
    """Returns one row per picture, `ATTACK_COLUMNS`.

    `against` is one of `budget.AGAINST`; `words` are what stands for the concept in the prompt; `vectors` is the digest
    of what they are read as, empty for plain words; `steps` is what was spent on them.

    Args:
        field: What is attacked.
        targets: The concepts to bring back.
        budgets: What each attack may spend, by its name.
        seeds: By concept, the seed that pictures count up from.
        shown: By concept, addresses of the base's pictures of it, for attacks that learn from pictures.
        on_progress: Called with steps and pictures done and in all.

    Raises:
        AttackError: An attack cannot be run on these models, or changed one.
    """
    for pipeline in (field.base, field.candidate):
        denoiser_of(pipeline)  # refuses before anything is spent
    digests = {"base": weights_digest(field.base), "candidate": weights_digest(field.candidate)}
    done, total = 0, units(budgets, targets=len(targets))

    def spend(number: int = 1) -> None:
        nonlocal done
        done += number
        if on_progress:
            on_progress(done, total)

    rows = []
    for subject in targets:
        pack = load_pack("style" if subject.head == "style" else "direct")
        goal = Goal(
            subject,
            field.base,
            prompts=lambda words, pack=pack, kind=subject.kind: pack.prompts(Subject(words, kind)),
            pictures=[field.store.read(address) for address in shown.get(subject.name, ())],
            pixels=field.sampler.pixels,
            device=field.device,
        )
        for name, budget in budgets.items():
            first = seeds[subject.name]
            for against, attempts in _attempts(ATTACKS[name], field, goal, budget, first, spend=spend).items():
                model = "base" if against == "base" else "candidate"
                share = drawn_pictures(budget) // len(attempts)
                for place, attempt in enumerate(attempts):
                    probes = _probes(goal, attempt, places=range(place * share, (place + 1) * share), first_seed=first)
                    drawn = _draw(field, model, digests[model], attempt, probes, subject=subject)
                    drawn = drawn.assign(attack=name, against=against, words=attempt.words)
                    drawn = drawn.assign(vectors=attempt.digest, steps=attempt.steps)
                    rows.append(drawn[list(ATTACK_COLUMNS)])
                    spend(share)
    for model, pipeline in (("base", field.base), ("candidate", field.candidate)):
        if weights_digest(pipeline) != digests[model]:
            raise AttackError(
                f"expected the {model}'s weights untouched by attacks, found them changed; nothing can be said of it: "
                "report this as a defect of the judge"
            )
    return pd.concat(rows, ignore_index=True)


def _attempts(
    attack: Attack, field: Field, goal: Goal, budget: Budget, first_seed: int, *, spend: OnStep
) -> dict[Against, list[Attempt]]:
    """Returns the best attempt on each model, and those in which nothing was learned."""
    found: dict[Against, list[Attempt]] = {}
    for against, pipeline in (("base", field.base), ("candidate", field.candidate)):
        starts = [
            attack.run(pipeline, goal, budget=budget, seed=_seed(attack.name, first_seed, start), on_step=spend)
            for start in range(budget.restarts)
        ]
        best = min(starts, key=lambda attempt: attempt.loss)
        found[against] = [Attempt(best.words, best.vectors, budget.steps * budget.restarts, best.loss)]
    found["random"] = [
        attack.control(field.candidate, goal, found["candidate"][0], seed=_seed("random", first_seed, place))
        for place in range(CONTROL_ATTEMPTS)
    ]
    return found


def _seed(name: str, first_seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{name} {first_seed} {number}".encode()).digest()[:6], "big")


def _probes(goal: Goal, attempt: Attempt, *, places: Sequence[int], first_seed: int) -> list[Probe]:
    prompts = goal.prompts(attempt.words)
    return [
        Probe(prompts[place % len(prompts)], first_seed + place, goal.subject.name, "target", ATTACK)
        for place in places
    ]


def _draw(
    field: Field, model: str, digest: str, attempt: Attempt, probes: Sequence[Probe], *, subject: Subject
) -> pd.DataFrame:
    """Draws and measures; only pictures of plain words are stored as the model's own."""
    pipeline = field.base if model == "base" else field.candidate
    stand_in = attempt.words.split()[0]
    with read_as(pipeline, stand_in, attempt.vectors) if attempt.vectors else nullcontext():
        addresses = render(
            pipeline,
            probes,
            store=field.store,
            model_digest=sha256_of({"model": digest, "vectors": attempt.digest}) if attempt.vectors else digest,
            sampler=field.sampler,
            batch_size=field.batch_size,
            device=field.device,
        )
    return measure(
        "base" if model == "base" else "candidate",
        probes,
        addresses,
        subjects={subject.name: subject},
        detectors=field.detectors,
        store=field.store,
    )
