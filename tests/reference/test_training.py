"""Every stage of the training runs on what the one before it left, and what comes out is a model that draws."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel

from infra.reference.training import __main__, contrastive, dataset, diffusion
from infra.reference.training.autoencoder import to_tensor

BEFORE_THE_DENOISER = ("contrastive", "autoencoder", "normalise", "encode", "classifier")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    for name, count in (("train", 96), ("heldout", 32)):  # as the stage `draw` writes them, but fewer
        dataset.save(dataset.draw(count, seed=1), folder / f"{name}.npz")
    stages = [[stage, "--seconds", "0.1"] for stage in (*BEFORE_THE_DENOISER, "diffusion")]
    with pytest.MonkeyPatch.context() as patch:
        for arguments in [*stages, ["assemble", "--out", str(folder / "out")]]:
            given = [*arguments, "--folder", str(folder), "--threads", str(torch.get_num_threads())]
            patch.setattr("sys.argv", ["training", *given])
            __main__.main()
    return folder / "out"


def test_the_stages_leave_a_pipeline_that_draws_and_detectors_that_load(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "model", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a photo of a dog", num_inference_steps=2, height=32, width=32).images[0]
    assert picture.size == (32, 32)
    assert CLIPModel.from_pretrained(trained / "detectors" / "clip").config.vision_config.image_size == 64
    assert (trained / "detectors" / "classifier" / "model.safetensors").exists()


def test_the_picture_tower_sees_in_training_what_the_image_processor_will_show_it(trained):
    drawn = dataset.draw(8, seed=1).pictures
    processor = CLIPImageProcessorPil.from_pretrained(trained / "detectors" / "clip")
    shown = processor([Image.fromarray(one) for one in drawn], return_tensors="pt").pixel_values
    assert shown.shape == (8, 3, contrastive.SEEN_PIXELS, contrastive.SEEN_PIXELS)
    assert _distance(contrastive.enlarge(to_tensor(drawn)), shown) < 0.005
    assert _distance(torch.nn.functional.interpolate(to_tensor(drawn), size=64, mode="bilinear"), shown) > 0.01


def test_a_denoiser_goes_on_from_one_that_reads_a_text_tower_of_another_width():
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(64, 8, 48, generator=generator)
    narrow = wide @ torch.randn(48, 32, generator=generator)  # all that the old tower says, the new one says as well
    old = diffusion.build(32).eval()
    new = diffusion.read_another_text(old, narrow, wide).eval()
    latents, steps = torch.randn(4, diffusion.LATENT_CHANNELS, 8, 8, generator=generator), torch.arange(4) * 100
    with torch.no_grad():
        before, untrained = (
            model(latents, steps, encoder_hidden_states=t[:4]).sample
            for model, t in ((old, narrow), (diffusion.build(48), wide))
        )
        after = new(latents, steps, encoder_hidden_states=wide[:4]).sample
    assert _distance(after, before) < 1e-3 * float(before.abs().mean())
    assert _distance(untrained, before) > 0.1 * float(before.abs().mean())


def _distance(one, other):
    return float((one - other).abs().mean())
