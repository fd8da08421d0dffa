from collections.abc import Callable
from typing import Any

import colour_world
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.scapre import tiny_pipelines
from validation.attacks.base import AttackError, Goal
from validation.attacks.budget import ATTACK_NAMES, AttackName, Budget
from validation.attacks.reading import denoiser_of, read_prompts
from validation.attacks.registry import ATTACKS
from validation.attacks.search import allowed_words, says
from validation.attacks.vectors import choose_stand_in, named_vectors, random_vectors, read_as, token_table
from validation.probe_packs import load_pack
from validation.probes import Subject
from validation.rendering import weights_digest

PIXELS = 32
LARGER = ("flux", "sana")
"""Families whose tokenizers and encoders take seconds even when small."""
FAMILIES = [pytest.param(f, marks=[pytest.mark.slow] if f in LARGER else []) for f in tiny_pipelines.BUILDERS]


def build(family: str = "stable-diffusion-1", seed: int = 0) -> Any:
    return tiny_pipelines.build(family, dtype=torch.float32, seed=seed)


def goal_of(base: Any, name: str = "monet", aliases: tuple[str, ...] = ()) -> Goal:
    direct = load_pack("direct")
    pictures = [Image.fromarray(np.full((PIXELS, PIXELS, 3), 60 * i, dtype=np.uint8)) for i in range(4)]
    return Goal(
        Subject(name, aliases=aliases), base, lambda words: direct.prompts(Subject(words)), pictures, PIXELS, "cpu"
    )


def run(name: AttackName, pipeline: Any, *, base: Any = None, seed: int = 0, on_step: Callable = int, **budget: Any):
    goal = goal_of(base or pipeline)
    return ATTACKS[name].run(pipeline, goal, budget=Budget(**{"steps": 2} | budget), seed=seed, on_step=on_step)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attack_runs_on_every_architecture_within_its_budget_and_leaves_no_trace(family: str):
    base, candidate = build(family), build(family)
    candidate.vae.train()
    before = weights_digest(candidate)
    scheduler = candidate.scheduler
    for name in ATTACK_NAMES:
        steps: list[int] = []
        attempt = run(name, candidate, base=base, on_step=lambda steps=steps: steps.append(1))
        assert len(steps) == attempt.steps == 2
        assert np.isfinite(attempt.loss)
        assert bool(attempt.vectors) == bool(attempt.digest) == (name != "search")
    assert weights_digest(candidate) == before
    assert candidate.scheduler is scheduler
    assert candidate.vae.training
    assert not denoiser_of(candidate)._forward_pre_hooks
    assert not candidate.text_encoder.get_input_embeddings()._forward_hooks
    for part in candidate.components.values():
        if isinstance(part, torch.nn.Module):
            assert all(weight.requires_grad and weight.grad is None for weight in part.parameters())


@pytest.mark.parametrize("name", ATTACK_NAMES)
def test_the_same_seed_gives_the_same_attempt_and_another_seed_another(name: AttackName):
    pipeline, base = build(seed=1), build()
    first, again, other = (run(name, pipeline, base=base, seed=seed, tokens=2) for seed in (1, 1, 2))
    assert (first.words, first.digest, first.loss) == (again.words, again.digest, again.loss)
    assert (first.words, first.digest) != (other.words, other.digest)


def test_matching_finds_a_vector_that_the_edit_hid():
    base, candidate = build(), build()
    table, own = token_table(candidate.text_encoder), candidate.tokenizer("monet").input_ids[1:-1]
    table[own] = table[candidate.tokenizer("tree").input_ids[1:-1]]  # now the name says something else
    start, end = (run("matching", candidate, base=base, steps=steps, seed=3).loss for steps in (1, 40))
    assert end < start / 3


@given(st.sampled_from(tiny_pipelines.WORDS), st.sampled_from(tiny_pipelines.WORDS))
def test_no_allowed_word_is_a_token_of_a_name_or_spells_one(name: str, alias: str):
    tokenizer = tiny_pipelines.clip_tokenizer()
    allowed = allowed_words(tokenizer, [name, alias])
    assert allowed
    assert not {*tokenizer(f"{name} {alias}").input_ids} & {*allowed}
    assert not any(says(word, [name, alias]) for word in allowed.values())
    assert all(tokenizer(word).input_ids[1:-1] == [number] for number, word in allowed.items())


def test_a_search_finds_other_words_that_read_as_near_as_any_and_never_the_name():
    pipeline = build()
    goal = goal_of(pipeline, "cat", aliases=("kitten", "tabby"))
    attempt = ATTACKS["search"].run(pipeline, goal, budget=Budget(steps=8, tokens=3), seed=0, on_step=int)
    assert len(attempt.words.split()) == 3
    assert not {"cat", "kitten", "tabby"} & {*attempt.words.split()}
    shorter = ATTACKS["search"].run(pipeline, goal, budget=Budget(steps=1, tokens=3), seed=0, on_step=int)
    assert attempt.loss < shorter.loss


def test_letters_that_spell_a_name_over_several_words_are_seen():
    assert says("t i g e r", ["tiger"])
    assert says("big ti ger", ["tiger"])
    assert not says("cat", ["tiger"])


def test_a_stand_in_is_read_as_its_vectors_in_turn_and_as_itself_afterwards():
    pipeline = build()
    goal = goal_of(pipeline, "cat dog")
    word = choose_stand_in(pipeline, goal)
    assert word not in " ".join(goal.prompts("cat dog")).split()
    vectors = named_vectors(pipeline, "cat dog", tokens=2)
    with torch.no_grad():
        [named] = read_prompts(pipeline, ["a photo of a cat dog"], pixels=PIXELS)
        [before] = read_prompts(pipeline, [f"a photo of a {word} {word}"], pixels=PIXELS)
        with read_as(pipeline, word, vectors):
            [read] = read_prompts(pipeline, [f"a photo of a {word} {word}"], pixels=PIXELS)
        [after] = read_prompts(pipeline, [f"a photo of a {word} {word}"], pixels=PIXELS)
    assert torch.equal(read, named)
    assert torch.equal(after, before)
    assert not torch.equal(before, named)


def test_random_vectors_are_as_long_as_the_learned_ones_and_point_elsewhere():
    learned = {"text_encoder": torch.randn(3, 64)}
    drawn, again = (random_vectors(learned, seed=1)["text_encoder"] for _ in range(2))
    assert torch.equal(drawn, again)
    assert torch.allclose(drawn.norm(dim=1), learned["text_encoder"].norm(dim=1))
    assert torch.cosine_similarity(drawn, learned["text_encoder"]).abs().max() < 0.5


def test_a_pipeline_that_cannot_be_read_is_refused():
    with pytest.raises(AttackError, match="found Painter"):
        denoiser_of(colour_world.Painter())


def test_inversion_without_pictures_is_refused():
    pipeline = build()
    goal = Goal(Subject("cat"), pipeline, lambda words: [f"a {words}"], [], PIXELS, "cpu")
    with pytest.raises(AttackError, match="expected pictures of 'cat'"):
        ATTACKS["inversion"].run(pipeline, goal, budget=Budget(steps=1), seed=0, on_step=int)
