"""Trials on a tiny pipeline, and the theorem on the reference model: on an unedited model every attack works."""

import copy
from pathlib import Path
from typing import Any

import colour_world
import pytest
from diffusers import StableDiffusionPipeline

import infra.reference
from validation import Detectors, PictureStore, Sampler
from validation.attacks import trial
from validation.attacks.base import AttackError
from validation.attacks.budget import AGAINST, ATTACK_NAMES, DEFAULT_BUDGETS, Budget
from validation.attacks.trial import Field, attack_targets, units
from validation.judgement import ATTACK_COLUMNS
from validation.probes import Probe, Subject
from validation.rendering import render, weights_digest

REFERENCE = Path(infra.reference.__file__).parent
BUDGETS: dict = {name: Budget(steps=2, restarts=2, pictures=8, tokens=2) for name in ATTACK_NAMES}


def field_of(base: Any, store: PictureStore, candidate: Any = None) -> Field:
    sampler = Sampler(steps=1, guidance=1.0, scheduler="DDIMScheduler", pixels=16)
    return Field(base, candidate or base, sampler, colour_world.detectors(), store, batch_size=4)


def shown_by(field: Field, name: str, prompt: str) -> list[str]:
    probes = [Probe(prompt, seed, name, "target", "direct") for seed in range(4)]
    digest = weights_digest(field.base)
    return render(field.base, probes, store=field.store, model_digest=digest, sampler=field.sampler)


def test_a_trial_is_paired_counted_and_never_draws_a_picture_twice(tiny_pipeline: Any, store: PictureStore):
    candidate = copy.deepcopy(tiny_pipeline)
    candidate.unet.conv_out.bias.data += 0.1
    field = field_of(tiny_pipeline, store, candidate)
    shown = {"tiger": shown_by(field, "tiger", "a tiger")}
    arguments: dict = {"budgets": BUDGETS, "seeds": {"tiger": 100}, "shown": shown}
    seen: list[tuple[int, int]] = []
    table = attack_targets(field, [Subject("tiger")], **arguments, on_progress=lambda *count: seen.append(count))
    assert tuple(table.columns) == ATTACK_COLUMNS
    assert seen[-1] == (units(BUDGETS, targets=1),) * 2
    assert table.groupby(["attack", "against"]).size().to_dict() == {
        (name, against): 8 for name in ATTACK_NAMES for against in AGAINST
    }
    assert all(sorted(own) == list(range(100, 108)) for _, own in table.groupby(["attack", "against"])["seed"])
    assert set(table.loc[table["against"] != "random", "steps"]) == {4}
    assert set(table.loc[table["against"] == "random", "steps"]) == {0}
    assert table.loc[table["against"] == "random"].groupby("attack")["prompt"].nunique().min() > 1
    learned = table[table["attack"] != "search"]
    assert learned["vectors"].str.len().eq(64).all()
    assert learned["address"].is_unique
    times = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*.png")}
    again = attack_targets(field, [Subject("tiger")], **arguments)
    assert again.equals(table)
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*.png")} == times


def test_a_model_that_an_attack_changed_is_an_error(tiny_pipeline: Any, store: PictureStore, monkeypatch: Any):
    class Careless(type(trial.ATTACKS["search"])):  # type: ignore[misc]
        def run(self, pipeline: Any, *arguments: Any, **named: Any) -> Any:
            attempt = super().run(pipeline, *arguments, **named)
            pipeline.unet.conv_out.bias.data += 1e-3
            return attempt

    monkeypatch.setattr(trial, "ATTACKS", {"search": Careless()})
    field = field_of(tiny_pipeline, store)
    budgets: dict = {"search": Budget(steps=1, pictures=8)}
    with pytest.raises(AttackError, match="expected the base's weights untouched"):
        attack_targets(field, [Subject("tiger")], budgets=budgets, seeds={"tiger": 0}, shown={})


@pytest.fixture(scope="module")
def reference() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(REFERENCE / "model", local_files_only=True)


def attack_reference(base: Any, candidate: Any, store: PictureStore, budgets: dict) -> dict[tuple[str, str], int]:
    sampler = Sampler(steps=12, guidance=4.0, scheduler="DPMSolverMultistepScheduler", pixels=32)
    detectors = Detectors.load(REFERENCE / "detectors" / "classifier")
    field = Field(base, candidate, sampler, detectors, store)
    shown = {"tiger": shown_by(field, "tiger", "a photo of a tiger")}
    table = attack_targets(field, [Subject("tiger")], budgets=budgets, seeds={"tiger": 9_000}, shown=shown)
    return table.groupby(["attack", "against"])["is_hit"].sum().to_dict()


def test_without_an_edit_learned_vectors_bring_the_concept_and_random_ones_do_not(
    reference: StableDiffusionPipeline, store: PictureStore
):
    budgets: dict = {"inversion": Budget(steps=2, pictures=8)}
    hits = attack_reference(reference, reference, store, budgets)
    for name in budgets:
        assert hits[name, "base"] >= 7
        assert hits[name, "candidate"] == hits[name, "base"]
        assert hits[name, "random"] <= 2


@pytest.mark.slow
def test_an_edit_of_cross_attention_is_undone_by_learned_vectors_and_not_by_random_ones(
    reference: StableDiffusionPipeline, store: PictureStore
):
    candidate = StableDiffusionPipeline.from_pretrained(REFERENCE / "model", local_files_only=True)
    tiger, house = (reference.tokenizer(word).input_ids[1:-1] for word in ("tiger", "house"))
    table = candidate.text_encoder.get_input_embeddings().weight.data
    table[tiger] = table[house[0]].clone()
    budgets = {name: own.model_copy(update={"pictures": 16}) for name, own in DEFAULT_BUDGETS.items()}
    hits = attack_reference(reference, candidate, store, budgets)
    for name in ATTACK_NAMES:
        assert hits[name, "base"] >= 14
        assert hits[name, "random"] <= 4
    assert hits["matching", "candidate"] >= 14
    assert hits["inversion", "candidate"] >= 12
