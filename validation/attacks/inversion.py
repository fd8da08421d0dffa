"""Embedding inversion: vectors learned from pictures of the concept, by the loss that the model was trained with.

Textual inversion (Gal et al. 2022) against an unlearned model, as "concept inversion" (Pham et al. 2023). It needs the
weights and a handful of pictures, and starts at the concept's own name.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from validation.attacks.base import AttackError, Attempt, Goal, OnStep
from validation.attacks.budget import AttackName, Budget
from validation.attacks.reading import frozen, predict
from validation.attacks.vectors import Learner, choose_stand_in, count_tokens, named_vectors, random_vectors, read_as
from validation.rendering import Pipeline

PICTURES_LEARNED_FROM = 8
_BATCH = 4
_EARLIEST, _LATEST = 0.05, 0.95
"""Share of the noise schedule that is learned from: at its ends a denoiser's answer hardly depends on the prompt."""


class Inversion:
    """Learns vectors that make a model predict the concept's own pictures."""

    name: AttackName = "inversion"

    def run(self, pipeline: Pipeline, goal: Goal, *, budget: Budget, seed: int, on_step: OnStep) -> Attempt:
        """Returns the vectors after `budget.steps` steps of the training loss."""
        if not goal.pictures:
            raise AttackError(f"expected pictures of {goal.subject.name!r} to learn from, found none; draw some first")
        tokens = count_tokens(pipeline, goal, budget.tokens)
        stand_in = choose_stand_in(pipeline, goal)
        words = " ".join([stand_in] * tokens)
        prompts = goal.prompts(words)
        generator = torch.Generator("cpu").manual_seed(seed)
        losses = []
        pipeline.to(goal.device)
        with frozen(pipeline):
            learner = Learner(pipeline, named_vectors(pipeline, goal.subject.name, tokens=tokens), steps=budget.steps)
            latents = _latents(pipeline, goal.pictures[:PICTURES_LEARNED_FROM])
            for step in range(budget.steps):
                chosen = torch.randint(len(latents), (_BATCH,), generator=generator)
                noise = torch.randn(latents[chosen].shape, generator=generator).to(latents)
                # stratified: every four steps see a quarter of the schedule each
                share = (step % 4 + float(torch.rand((), generator=generator))) / 4
                noisy, answer, timestep = _noised(
                    pipeline, latents[chosen], noise, _EARLIEST + (_LATEST - _EARLIEST) * share
                )
                asked = [prompts[(step * _BATCH + i) % len(prompts)] for i in range(_BATCH)]
                with read_as(pipeline, stand_in, learner.vectors):
                    said = predict(
                        pipeline, asked, latents=_packed(pipeline, noisy), timestep=timestep, pixels=goal.pixels
                    )
                expected = _packed(pipeline, answer)
                loss = (said[:, : expected.shape[1]].float() - expected.float()).square().mean()
                learner.follow(loss)
                losses.append(float(loss.detach()))
                on_step()
            vectors = learner.result()
        return Attempt(words, vectors, budget.steps, float(np.mean(losses[-max(1, len(losses) // 4) :])))

    def control(self, pipeline: Pipeline, goal: Goal, attempt: Attempt, *, seed: int) -> Attempt:  # noqa: ARG002
        """Returns random vectors of the same lengths."""
        return Attempt(attempt.words, random_vectors(attempt.vectors, seed=seed), 0, float("nan"))


@torch.no_grad()
def _latents(pipeline: Pipeline, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Returns pictures as the model's latents, scaled as the denoiser expects them."""
    vae = pipeline.vae
    pixels = np.stack([np.asarray(picture, dtype=np.float32) / 127.5 - 1 for picture in pictures])
    encoded: Any = vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(vae.device, vae.dtype))
    latents = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
    return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


def _noised(
    pipeline: Pipeline, latents: torch.Tensor, noise: torch.Tensor, share: float
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Returns noisy latents, what a perfect denoiser would answer, and the timestep, for a share of the schedule."""
    from diffusers import DDPMScheduler

    config = pipeline.scheduler.config
    steps = config.num_train_timesteps
    if "FlowMatch" in type(pipeline.scheduler).__name__ or config.get("prediction_type") == "flow_prediction":
        return (1 - share) * latents + share * noise, noise - latents, share * steps
    schedule: Any = DDPMScheduler.from_config(config)
    timestep = round(share * (steps - 1))
    at = torch.full((len(latents),), timestep, device=latents.device, dtype=torch.long)
    noisy = schedule.add_noise(latents, noise, at)
    answers = {"epsilon": lambda: noise, "sample": lambda: latents}
    answers["v_prediction"] = lambda: schedule.get_velocity(latents, noise, at)
    return noisy, answers[config.get("prediction_type", "epsilon")](), timestep


def _packed(pipeline: Pipeline, latents: torch.Tensor) -> torch.Tensor:
    """Returns latents as the pipeline's call takes them; FLUX lays patches in a row."""
    return pipeline._pack_latents(latents, *latents.shape) if hasattr(pipeline, "_pack_latents") else latents
