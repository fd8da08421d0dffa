"""The adapters by pipeline class, and how a loaded pipeline is read; anything without an adapter is refused by name."""

import contextlib
import re
import threading
from collections.abc import Generator, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from scapre.architectures import flux, pixart, sana, stable_diffusion, stable_diffusion_3, stable_diffusion_xl
from scapre.architectures.base import Architecture, BaseModel, Parts, assemble, check_class
from scapre.errors import UnsupportedArchitectureError
from scapre.text import COMPILED

ARCHITECTURES: Mapping[str, Architecture] = {
    module.ARCHITECTURE.name: module.ARCHITECTURE
    for module in (stable_diffusion, stable_diffusion_xl, stable_diffusion_3, flux, pixart, sana)
}
_BY_CLASS = {name: found for found in ARCHITECTURES.values() for name in found.pipeline_classes}
OTHER_TASKS = ("Img2Img", "Inpaint")
"""What stands in the names of pipelines of the same components that begin with a picture."""
_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_locking = threading.Lock()
_DROP_ADAPTERS = (
    "drop adapters by pipeline.unload_lora_weights() first, or keep them by pipeline.fuse_lora() and then that"
)


def find_architecture(pipeline_class: str) -> Architecture:
    """Returns the adapter for checkpoints of pipelines of class `pipeline_class`.

    Raises:
        UnsupportedArchitectureError: there is none; lists the supported ones.
    """
    if pipeline_class not in _BY_CLASS:
        raise UnsupportedArchitectureError(
            f"expected a pipeline among {', '.join(sorted(_BY_CLASS))}, found {pipeline_class}; nothing was changed. "
            "Where it holds the parts of one of these, load it as that one: they share their weights"
        )
    return _BY_CLASS[pipeline_class]


def _architecture_of(pipeline: Any) -> Architecture:
    """Returns the adapter of a loaded pipeline: of its class, of one that was made of it, or of one that is made of it.

    `StableDiffusionImg2ImgPipeline.from_pipe` shares every component with the pipeline it was given.
    """
    for kind in type(pipeline).__mro__:
        for task in ("", *OTHER_TASKS):
            if found := _BY_CLASS.get(kind.__name__.replace(task, "")):
                return found
    return find_architecture(type(pipeline).__name__)


def tokenizer_of(text_encoder: str) -> str:
    """Returns the component name of a text encoder's tokenizer."""
    return text_encoder.replace("text_encoder", "tokenizer")


@contextlib.contextmanager
def alone_with(pipeline: Any) -> Generator[None]:
    """Has other threads that would read or edit a part of a loaded pipeline wait until the block has ended.

    For what is no pipeline nobody waits.
    """
    parts = map(_uncompiled, getattr(pipeline, "__dict__", {}).values())
    modules = {id(part): part for part in parts if isinstance(part, nn.Module)}
    with _locking:
        locks = [_locks.setdefault(modules[key], threading.RLock()) for key in sorted(modules)]
    with contextlib.ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield


def read_pipeline(pipeline: Any) -> BaseModel:
    """Returns text encoders and live projections of a loaded pipeline.

    Raises:
        UnsupportedArchitectureError: no adapter for the pipeline or for one of its components; named in the message.
    """
    architecture = _architecture_of(pipeline)
    encoders = {}
    for component, expected in architecture.text_encoders.items():
        encoder = _uncompiled(getattr(pipeline, component))
        if encoder is None and component in architecture.optional:
            continue
        check_class(component, type(encoder).__name__, expected)
        _refuse_adapters(component, encoder)
        _refuse_disk(component, encoder)
        encoders[component] = encoder
    denoiser = _uncompiled(getattr(pipeline, architecture.denoiser))
    check_class(architecture.denoiser, type(denoiser).__name__, architecture.denoiser_class)
    _refuse_wrapped(denoiser, architecture.projection)
    _refuse_disk(architecture.denoiser, denoiser)
    return assemble(
        architecture,
        Parts(
            tokenizers={component: getattr(pipeline, tokenizer_of(component)) for component in encoders},
            encoders=encoders,
            denoiser_config=dict(denoiser.config),
            weights={
                f"{architecture.denoiser}.{name}": weight
                for name, weight in _named_parameters(denoiser)
                if architecture.is_read(name)
            },
        ),
    )


def _uncompiled(component: Any) -> Any:
    """Returns what `torch.compile` was given, whose weights it computes with."""
    return getattr(component, "_orig_mod", component)


def _named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name.replace(COMPILED, ""), weight) for name, weight in module.named_parameters())


def _refuse_wrapped(denoiser: nn.Module, projection: re.Pattern[str]) -> None:
    named = [(name, module) for name, module in denoiser.named_modules() if projection.search(name)]
    if wrapped := [name for name, module in named if not isinstance(module, nn.Linear)]:
        raise UnsupportedArchitectureError(
            f"expected plain linear projections, found {len(wrapped)} wrapped ones, the first {wrapped[0]!r}; "
            f"{_DROP_ADAPTERS}"
        )
    if computed := [name for name, module in named if "weight" not in dict(module.named_parameters(recurse=False))]:
        raise UnsupportedArchitectureError(
            f"expected projections with a weight of their own, found {len(computed)} that compute it (pruned or "
            f"parametrized), the first {computed[0]!r}; make that permanent first (torch.nn.utils.prune.remove, "
            "torch.nn.utils.parametrize.remove_parametrizations)"
        )
    if copied := [
        name
        for name, module in denoiser.named_modules()
        if "Fused" in type(getattr(module, "processor", None)).__name__  # unfusing takes the processor away, no flag
        and any(projection.search(f"{name}.{child}") for child, _ in module.named_children())
    ]:
        raise UnsupportedArchitectureError(
            f"expected projections that the model computes with, found fused copies of them in {len(copied)} modules, "
            f"the first {copied[0]!r}; an edit would change no picture: call unfuse_qkv_projections() first"
        )


def _refuse_adapters(component: str, encoder: nn.Module) -> None:
    """Refuses an encoder whose features depend on more than its weights: on which adapters are on, and how much."""
    if adapted := [name for name, module in encoder.named_modules() if hasattr(module, "base_layer")]:
        raise UnsupportedArchitectureError(
            f"expected a plain {component}, found adapters on {len(adapted)} of its modules, the first {adapted[0]!r}; "
            f"{_DROP_ADAPTERS}"
        )


def _refuse_disk(component: str, part: nn.Module) -> None:
    """Refuses weights of which only a file holds the numbers, and memory something else."""
    for module in part.modules():
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        if any(getattr(getattr(hook, "group", None), "offload_to_disk_path", None) for hook in hooks.values()):
            raise UnsupportedArchitectureError(
                f"expected weights in memory, found {component} off-loaded to disk; load the pipeline without "
                "off-loading"
            )
