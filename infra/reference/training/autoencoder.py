"""Stage `autoencoder`: AutoencoderKL on drawn pictures."""

import logging
import time
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch.nn import functional

from infra.reference.training import dataset
from infra.reference.training.schedule import set_rate

LATENT_CHANNELS = 8
GROUPS = 2
KL_WEIGHT = 1e-5
logger = logging.getLogger(__name__)


def build(channels: tuple[int, ...] = (24, 48, 96), latent_channels: int = LATENT_CHANNELS) -> AutoencoderKL:
    """Returns an untrained autoencoder: 32 x 32 pictures to 8 x 8 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=GROUPS,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def loss(model: AutoencoderKL, pictures: torch.Tensor, *, is_coarse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the training loss and the mean absolute error; pictures are in [-1, 1].

    The coarse loss is a squared error without posterior noise, which escapes the flat start of an absolute error.
    """
    posterior = model.encode(pictures).latent_dist
    rebuilt = model.decode(posterior.mean if is_coarse else posterior.sample()).sample
    error = (rebuilt - pictures).abs().mean()
    if is_coarse:
        return 2 * functional.mse_loss(rebuilt, pictures) + KL_WEIGHT * posterior.kl().mean(), error
    edges = (rebuilt.diff(dim=2) - pictures.diff(dim=2)).abs().mean()
    edges = edges + (rebuilt.diff(dim=3) - pictures.diff(dim=3)).abs().mean()
    return error + 0.5 * edges + functional.mse_loss(rebuilt, pictures) + KL_WEIGHT * posterior.kl().mean(), error


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """Returns byte pictures `[n, h, w, 3]` as floats `[n, 3, h, w]` in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(
    drawings: dataset.Drawings, folder: Path, *, seconds: float, batch: int = 12, peak_rate: float = 6e-4, seed: int = 1
) -> AutoencoderKL:
    """Trains for a span of time and saves; the schedule follows the clock, so a slower machine takes fewer steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    started, step, spent = time.monotonic(), 0, 0.0
    while spent < seconds:
        spent = time.monotonic() - started
        fraction = min(spent / seconds, 1.0)
        set_rate(optimizer, peak=peak_rate, step=step, warm_up=100, remaining=(1 - fraction) ** 0.7)
        chosen = rng.integers(len(drawings.pictures), size=batch)
        pictures = to_tensor(drawings.pictures[chosen]).to(memory_format=torch.channels_last)
        total, error = loss(model, pictures, is_coarse=fraction < 0.3)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            logger.info("step %d  %.0f s  loss %.4f  error %.4f", step, spent, float(total), float(error))
        if step % 1000 == 0:
            model.save_pretrained(folder)
    model.save_pretrained(folder)
    return model


def normalise_latents(model: AutoencoderKL, pictures: np.ndarray) -> None:
    """Folds a scale and a shift per latent channel into the weights, so that latents have mean 0 and deviation 1.

    The decoder pads with zeros, which now stand for the mean latent: exact inside, a slight change at the border.
    """
    latents = mean_latents(model, pictures)
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    encoder, decoder = model.encoder.conv_out, model.decoder.conv_in
    assert encoder.bias is not None
    assert decoder.bias is not None
    with torch.no_grad():
        encoder.weight[:channels] /= deviation[:, None, None, None]
        encoder.bias[:channels] = (encoder.bias[:channels] - mean) / deviation
        encoder.bias[channels:] -= 2 * deviation.log()
        decoder.bias += torch.einsum("ocij,c->o", decoder.weight, mean)
        decoder.weight *= deviation[None, :, None, None]
    model.register_to_config(scaling_factor=1.0)


def mean_latents(model: AutoencoderKL, pictures: np.ndarray, *, batch: int = 128) -> torch.Tensor:
    """Returns the posterior means of byte pictures, `[n, channels, 8, 8]`."""
    with torch.inference_mode():
        return torch.cat(
            [model.encode(to_tensor(pictures[i : i + batch])).latent_dist.mean for i in range(0, len(pictures), batch)]
        ).clone()


def reconstruction_error(model: AutoencoderKL, pictures: np.ndarray) -> float:
    """Returns the root mean square error of reconstructions on the 0 to 1 scale."""
    with torch.inference_mode():
        rebuilt = model.decode(mean_latents(model, pictures)).sample
    return float(functional.mse_loss(rebuilt, to_tensor(pictures)).sqrt() / 2)
