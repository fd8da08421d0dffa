"""Stage `diffusion`: UNet2DConditionModel on the autoencoder's latents, conditioned on the contrastive text tower."""

import copy
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from infra.reference.training.autoencoder import LATENT_CHANNELS
from infra.reference.training.contrastive import TEXT_WIDTH
from infra.reference.training.schedule import set_rate

UNCONDITIONAL_FRACTION = 0.1
MAXIMUM_SNR_WEIGHT = 5.0
AVERAGE_DECAY = 0.999
SAVE_SECONDS = 240
WARM_UP_STEPS = 100
RIDGE = 1e-4
"""Of the mean eigenvalue, where projections are fitted to another text tower."""
logger = logging.getLogger(__name__)


def build(text_width: int = TEXT_WIDTH) -> UNet2DConditionModel:
    """Returns an untrained denoiser with cross-attention at two widths that reads text of `text_width`."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(80, 160),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=16,
        cross_attention_dim=text_width,
    )


def build_scheduler() -> DDPMScheduler:
    """Returns the noise schedule of Stable Diffusion with velocity prediction."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def encode_captions(captions: list[str], folder: Path) -> tuple[torch.Tensor, np.ndarray]:
    """Returns half-precision token features of the distinct captions, the empty one first, and each caption's row."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    encoder = CLIPTextModel.from_pretrained(folder).eval()
    distinct, rows = np.unique(np.array(captions), return_inverse=True)
    texts = ["", *distinct.tolist()]
    features = []
    with torch.inference_mode():
        for start in range(0, len(texts), 512):
            ids = tokenizer(
                texts[start : start + 512], padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            features.append(encoder(ids).last_hidden_state.half())
    return torch.cat(features).clone(), rows + 1


def read_another_text(model: UNet2DConditionModel, before: torch.Tensor, after: torch.Tensor) -> UNet2DConditionModel:
    """Returns the denoiser with cross-attention that reads `after` as `model` reads `before`, in least squares.

    Args:
        model: A denoiser trained on features of width d.
        before: `[texts, tokens, d]`, its text tower's features.
        after: `[texts, tokens, e]`, another tower's of the same texts.
    """
    old, new = before.flatten(0, 1), after.flatten(0, 1)
    width = new.shape[1]
    moment, cross = (torch.zeros(width, columns, dtype=torch.float64) for columns in (width, old.shape[1]))
    for some_old, some_new in zip(old.split(65_536), new.split(65_536), strict=True):
        moment += (some_new.float().mT @ some_new.float()).double()
        cross += (some_new.float().mT @ some_old.float()).double()
    moment += RIDGE * moment.trace() / width * torch.eye(width, dtype=torch.float64)
    back = torch.linalg.solve(moment, cross).float()  # [e, d]: what `before` is, told from `after`
    other = build(width)
    other.load_state_dict(
        {
            name: weight @ back.mT if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) else weight
            for name, weight in model.state_dict().items()
        }
    )
    return other


def loss(
    model: UNet2DConditionModel, latents: torch.Tensor, features: torch.Tensor, alphas: torch.Tensor
) -> torch.Tensor:
    """Returns the velocity loss with min-SNR weighting (Hang et al. 2023, arXiv 2303.09556)."""
    steps = torch.randint(len(alphas), (len(latents),))
    signal = alphas[steps][:, None, None, None]
    noise = torch.randn_like(latents)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
    predicted = model(noisy, steps, encoder_hidden_states=features).sample
    error = functional.mse_loss(predicted, velocity, reduction="none").mean(dim=(1, 2, 3))
    snr = alphas[steps] / (1 - alphas[steps])
    return (error * snr.clamp(max=MAXIMUM_SNR_WEIGHT) / (snr + 1) * 4).mean()


def train(
    latents: torch.Tensor,
    captions: list[str],
    *,
    text_folder: Path,
    folder: Path,
    seconds: float,
    start: Path | None = None,
    start_text: Path | None = None,
    batch: int = 40,
    peak_rate: float = 1e-3,
    seed: int = 4,
) -> None:
    """Trains for a span of time; saves the running average of the weights now and then, and at the end.

    It goes on from the denoiser in `start`, if given; `start_text` is the text tower which that one reads, if another.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    features, rows = encode_captions(captions, text_folder)
    logger.info("%d distinct captions, %d latents", len(features) - 1, len(latents))
    alphas = build_scheduler().alphas_cumprod
    model = UNet2DConditionModel.from_pretrained(start) if start else build(features.shape[-1])
    if start_text:
        model = read_another_text(model, encode_captions(captions, start_text)[0], features)
    model.train()
    averaged = copy.deepcopy(model).eval()
    logger.info("%d parameters", sum(p.numel() for p in model.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.99), weight_decay=0.01)
    started, step, spent, saved, running = time.monotonic(), 0, 0.0, 0.0, 0.0
    while spent < seconds:
        spent = time.monotonic() - started
        fraction = min(spent / seconds, 1.0)
        remaining = 0.5 + 0.5 * math.cos(math.pi * fraction)
        set_rate(optimizer, peak=peak_rate, step=step, warm_up=WARM_UP_STEPS, remaining=remaining)
        chosen = rng.integers(len(latents), size=batch)
        text_rows = np.where(rng.random(batch) < UNCONDITIONAL_FRACTION, 0, rows[chosen])
        value = loss(model, latents[chosen], features[text_rows].float(), alphas)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(AVERAGE_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
        step += 1
        running = 0.98 * running + 0.02 * value.item() if step > 1 else value.item()
        if step % 100 == 0:
            logger.info("step %d  %.0f s  loss %.4f", step, spent, running)
        if spent - saved > SAVE_SECONDS:
            averaged.save_pretrained(folder)
            saved = spent
    averaged.save_pretrained(folder)
