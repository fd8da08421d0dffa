"""What a pipeline makes of a prompt, with gradients: read off the pipeline's own call, whatever its architecture.

Guarantees:
    1. Nothing is rebuilt: prompts take the way they take when a picture is drawn, tokenizers and templates included.
    2. Scheduler, hooks, modes and gradient flags are as before when a call ends, however it ends.
    3. Weights receive no gradient and are never written to.
"""

import inspect
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from validation.attacks.base import AttackError
from validation.rendering import Pipeline

_READS_PROMPT = re.compile(r"(?:attn2\.to_[kv]|add_[kv]_proj)$")
"""Keys and values that a denoiser makes of its prompt, as diffusers names their layers."""
_MIDDLE = 500.0
"""The timestep of a call in which it does not matter, or must only be the same."""
_PLAIN = {"use_resolution_binning": False, "clean_caption": False, "output_type": "latent"}
"""What is asked of a call, where it can be asked: nothing that alters sizes or prompts."""


class _Found(Exception):  # noqa: N818 - not an error: the call has given what it was made for
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class _OneTime:
    """A scheduler of one timestep, which ends the call with what the denoiser says at it."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Any, timestep: float) -> None:
        self.config = config
        self._timestep = timestep

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,  # noqa: ARG002
        device: Any = None,
        sigmas: Any = None,  # noqa: ARG002
        mu: Any = None,  # noqa: ARG002
    ) -> None:
        self.timesteps = torch.tensor([self._timestep], device=device)

    def set_begin_index(self, _index: int = 0) -> None:
        """Has one index."""

    def scale_model_input(self, sample: torch.Tensor, _timestep: Any = None) -> torch.Tensor:
        return sample

    def step(self, model_output: torch.Tensor, _timestep: Any, _sample: torch.Tensor, **_: Any) -> Any:
        raise _Found(model_output)


def denoiser_of(pipeline: Pipeline) -> torch.nn.Module:
    """Returns the part of a pipeline that turns noise into a picture.

    Raises:
        AttackError: It has none that is known.
    """
    for name in ("unet", "transformer"):
        part = getattr(pipeline, name, None)
        if isinstance(part, torch.nn.Module) and hasattr(type(pipeline).__call__, "__wrapped__"):
            return part
    raise AttackError(
        f"expected a diffusers text-to-image pipeline with a unet or a transformer, found {type(pipeline).__name__}; "
        "attacks read a prompt through one: judge this model without attacks"
    )


@contextmanager
def frozen(*pipelines: Pipeline) -> Generator[None]:
    """Keeps weights from gathering gradients, and parts from behaving as in training, until the block ends."""
    parts = {id(p): p for each in pipelines for p in each.components.values() if isinstance(p, torch.nn.Module)}
    modes = [(part, part.training) for part in parts.values()]
    flags = [(weight, weight.requires_grad) for part in parts.values() for weight in part.parameters()]
    for part in parts.values():
        part.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part, mode in modes:
            part.train(mode)
        for weight, flag in flags:
            weight.requires_grad_(flag)


def read_prompts(pipeline: Pipeline, prompts: Sequence[str], *, pixels: int) -> tuple[torch.Tensor, ...]:
    """Returns what the text encoders hand to the denoiser: embeddings by token, and pooled ones where it takes any."""

    def stop(_module: torch.nn.Module, _arguments: Any, given: dict[str, Any]) -> None:
        pooled = given.get("pooled_projections", (given.get("added_cond_kwargs") or {}).get("text_embeds"))
        raise _Found((given["encoder_hidden_states"],) if pooled is None else (given["encoder_hidden_states"], pooled))

    with ExitStack() as stack:
        stack.callback(denoiser_of(pipeline).register_forward_pre_hook(stop, with_kwargs=True).remove)
        return _call(pipeline, prompts, pixels=pixels)


def predict(
    pipeline: Pipeline, prompts: Sequence[str], *, latents: torch.Tensor, timestep: float, pixels: int
) -> torch.Tensor:
    """Returns the denoiser's answer to noisy latents at a timestep."""
    return _call(pipeline, prompts, pixels=pixels, latents=latents, timestep=timestep)


def read_projections(pipeline: Pipeline, prompts: Sequence[str], *, pixels: int) -> tuple[torch.Tensor, ...]:
    """Returns the keys and values that the denoiser makes of prompts, layer by layer.

    A UNet hands all its layers the same embeddings, so it need not be run; a transformer changes them on the way.

    Raises:
        AttackError: No layer of the denoiser has a name that is known for it.
    """
    denoiser = denoiser_of(pipeline)
    layers = [module for name, module in denoiser.named_modules() if _READS_PROMPT.search(name)]
    if not layers:
        raise AttackError(
            f"expected cross-attention as diffusers names it in {type(denoiser).__name__}, found none; leave "
            "the attack 'matching' out"
        )
    if denoiser is getattr(pipeline, "unet", None) and getattr(denoiser, "encoder_hid_proj", None) is None:
        embeddings = read_prompts(pipeline, prompts, pixels=pixels)[0]
        return tuple(layer(embeddings) for layer in layers)
    found: list[torch.Tensor] = []

    def collect(_module: torch.nn.Module, _arguments: Any, output: torch.Tensor) -> None:
        found.append(output)
        if len(found) == len(layers):  # what comes after does not read the prompt any more
            raise _Found(tuple(found))

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(collect).remove)
        return _call(pipeline, prompts, pixels=pixels)


def _call(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    pixels: int,
    latents: torch.Tensor | None = None,
    timestep: float = _MIDDLE,
) -> Any:
    call: Callable[..., Any] = type(pipeline).__call__.__wrapped__  # below the decorator that forbids gradients
    known = inspect.signature(call).parameters
    scheduler, bar = pipeline.scheduler, dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.scheduler = _OneTime(scheduler.config, timestep)
    pipeline.set_progress_bar_config(disable=True)
    try:
        call(
            pipeline,
            prompt=list(prompts),
            num_inference_steps=1,
            guidance_scale=1.0,
            height=pixels,
            width=pixels,
            latents=latents,
            generator=torch.Generator("cpu").manual_seed(0),
            **{name: value for name, value in _PLAIN.items() if name in known},
        )
    except _Found as found:
        return found.value
    finally:
        pipeline.scheduler = scheduler
        pipeline.set_progress_bar_config(**bar)
    raise AttackError(
        f"expected {type(pipeline).__name__} to ask its denoiser once, found that it did not; judge it without attacks"
    )
