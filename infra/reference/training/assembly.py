"""Stage `assemble`: the trained parts become a StableDiffusionPipeline folder and two detector folders."""

import shutil
from pathlib import Path

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from infra.reference.training import diffusion


def assemble(parts: Path, out: Path) -> None:
    """Writes `model/` and `detectors/` under `out` from the stages' folders under `parts`."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(parts / "vae_normalised"),
        text_encoder=CLIPTextModel.from_pretrained(parts / "clip"),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "clip"),
        unet=UNet2DConditionModel.from_pretrained(parts / "unet"),
        scheduler=DPMSolverMultistepScheduler.from_config(diffusion.build_scheduler().config),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out / "model", safe_serialization=True)
    for part, name in (("classifier", "classifier"), ("clip", "clip")):
        shutil.rmtree(out / "detectors" / name, ignore_errors=True)
        shutil.copytree(parts / part, out / "detectors" / name)
