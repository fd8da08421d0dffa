"""Stage `assemble`: the trained parts become a StableDiffusionPipeline folder and two detector folders."""

import shutil
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, ResNetForImageClassification

from infra.reference.training import diffusion


def assemble(parts: Path, out: Path) -> None:
    """Writes `model/` and `detectors/` under `out` from the stages' folders under `parts`."""
    parts_of_pipeline: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    scheduler: Any = DPMSolverMultistepScheduler.from_config(diffusion.build_scheduler().config)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(parts / "vae_normalised"),
        text_encoder=CLIPTextModel.from_pretrained(parts / "clip"),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "clip"),
        unet=UNet2DConditionModel.from_pretrained(parts / "unet"),
        scheduler=scheduler,
        requires_safety_checker=False,
        **parts_of_pipeline,
    )
    pipeline.save_pretrained(out / "model", safe_serialization=True)
    for name, kind in (("classifier", ResNetForImageClassification), ("clip", CLIPModel)):
        folder = out / "detectors" / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(parts / name, folder)
        # half the bytes, the same answers; whoever loads them computes in single precision
        kind.from_pretrained(parts / name).half().save_pretrained(folder)
