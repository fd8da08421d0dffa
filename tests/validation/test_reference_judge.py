"""The judge on the reference model: real pictures, real detectors."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import infra.reference
from validation import Detectors, Integrity, Judgement, PictureStore, Policy, Sampler, judge

REFERENCE = Path(infra.reference.__file__).parent
RETAINED = ("cat", "lion", "dog", "bus", "apple", "house", "violin", "owl")
SAMPLER = Sampler(steps=12, guidance=4.0, scheduler="DPMSolverMultistepScheduler", pixels=32)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(REFERENCE / "model", local_files_only=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> PictureStore:
    return PictureStore(tmp_path_factory.mktemp("pictures"))


def judged(base: StableDiffusionPipeline, candidate: StableDiffusionPipeline, store: PictureStore) -> Judgement:
    detectors = REFERENCE / "detectors"
    return judge(
        base,
        candidate,
        base_digest="base",
        candidate_digest="candidate",
        targets=("tiger",),
        retained=RETAINED,
        policy=Policy(),
        sampler=SAMPLER,
        detectors=Detectors.load(detectors / "classifier", detectors / "clip"),
        store=store,
        integrity=Integrity(True, "loaded from the same folder"),
    )


def copy_of(base: StableDiffusionPipeline) -> StableDiffusionPipeline:
    parts = base.components | {"text_encoder": copy.deepcopy(base.text_encoder)}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def test_an_identical_reference_model_fails(base: StableDiffusionPipeline, pictures: PictureStore):
    judgement = judged(base, copy_of(base), pictures)
    assert judgement.verdict == "failed"
    assert {g.verdict for g in judgement.gates if g.is_control} == {"passed"}
    assert judgement.expectations["answers"]["retained concepts survive"]


@torch.no_grad()
def test_a_reference_model_whose_word_means_something_else_passes(
    base: StableDiffusionPipeline, pictures: PictureStore
):
    candidate = copy_of(base)
    tiger, house = (base.tokenizer(word).input_ids[1:-1] for word in ("tiger", "house"))
    table = candidate.text_encoder.get_input_embeddings().weight
    table[tiger] = table[house[0]].clone()
    judgement = judged(base, candidate, pictures)
    assert judgement.verdict == "passed", judgement.reasons
    assert judgement.measures["image_text_score"].notna().all()
