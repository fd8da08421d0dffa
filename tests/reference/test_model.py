"""The reference model keeps what its model card says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import ResNetForImageClassification

from infra.reference import world
from infra.reference.training import classifier, dataset, evaluation
from infra.reference.training.autoencoder import to_tensor

REFERENCE = Path(world.__file__).parent
LARGEST_BYTES = 60_000_000


@pytest.fixture(scope="module")
def judge():
    return ResNetForImageClassification.from_pretrained(REFERENCE / "detectors" / "classifier").float().eval()


@pytest.fixture(scope="module")
def pipeline():
    loaded = StableDiffusionPipeline.from_pretrained(REFERENCE / "model", local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_the_weights_are_safetensors_and_small():
    files = [path for path in REFERENCE.rglob("*") if path.is_file()]
    assert not [p for p in files if p.suffix in {".bin", ".ckpt", ".pt", ".pth", ".pkl"}]
    assert sum(p.stat().st_size for p in files if p.suffix == ".safetensors") <= LARGEST_BYTES


def test_cross_attention_reads_text_at_several_widths(pipeline):
    shapes = {
        tuple(module.to_k.weight.shape) for name, module in pipeline.unet.named_modules() if name.endswith("attn2")
    }
    assert len(shapes) >= 2
    assert {d_in for _, d_in in shapes} == {256}


def test_the_classifier_knows_held_out_drawings(judge):
    drawings = dataset.draw(len(world.load_objects()) * 4, seed=dataset.HELD_OUT_SEED + 1)
    objects, styles = classifier.accuracy(
        judge, to_tensor(drawings.pictures), drawings.object_labels, drawings.style_labels
    )
    assert objects >= 0.97
    assert styles >= 0.97
    shuffled = np.random.default_rng(0).permutation(drawings.object_labels)
    assert classifier.accuracy(judge, to_tensor(drawings.pictures), shuffled, drawings.style_labels)[0] < 0.1


def test_generated_pictures_show_what_was_asked_for(pipeline, judge):
    names = [o.name for o in world.load_objects()]
    pictures = evaluation.generate(pipeline, [f"a photo of {world.with_article(n)}" for n in names], first_seed=99)
    with torch.inference_mode():
        found = judge(pixel_values=to_tensor(pictures)).logits[:, : len(names)].argmax(1).numpy()
    assert (found == np.arange(len(names))).mean() >= 0.92


@pytest.mark.slow
def test_the_figures_of_the_model_card_hold(pipeline, judge):
    accuracy, _ = evaluation.measure(pipeline, judge, per_concept=16, seed=7)
    assert np.mean(list(accuracy.by_object.values())) >= 0.92
    assert min(accuracy.by_object.values()) >= 0.60
    assert np.mean(list(accuracy.by_style.values())) >= 0.90
