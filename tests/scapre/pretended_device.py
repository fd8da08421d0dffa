"""A device that is not the CPU, for machines that have none other.

Its tensors are computed on the CPU. As on CUDA, they may not meet the CPU's, and a sum has last bits of its own: what a
product or a sum gives is off by a few units in the last place, differently every time.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("maia", 0)
"""A kind of device that torch knows by name, and of which no build of it has any kernel."""
SHAPES_ONLY = torch.device("meta")
"""What torch takes these tensors for where it does not ask Python."""
UNITS_IN_THE_LAST_PLACE = 8.0
MAY_MIX = {"aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put_"}
SUMS = {
    "aten::mm",
    "aten::bmm",
    "aten::addmm",
    "aten::addmm_",
    "aten::baddbmm",
    "aten::sum",
    "aten::linalg_vector_norm",
}


class PretendedTensor(Tensor):
    """A tensor of the device; `held` is where its numbers are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "PretendedTensor":
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=SHAPES_ONLY
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, _: object, given: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(operation, given, named or {})

    @property
    def device(self) -> torch.device:
        return DEVICE

    @property
    def is_meta(self) -> bool:
        return False

    @property
    def data(self) -> Tensor:
        return PretendedTensor(self.held)

    # torch makes these tensors without asking, and they would hold nothing
    def __getitem__(self, place: Any) -> Any:
        return super().__getitem__(_moved_lists(place))

    def new_tensor(self, numbers: Any) -> Tensor:  # ty: ignore[invalid-method-override]
        return PretendedTensor(torch.tensor(numbers, dtype=self.dtype))

    def tolist(self) -> Any:
        return self.held.tolist()


_TENSOR = torch.tensor


def _tensor(numbers: Any, *, device: Any = None, **named: Any) -> Tensor:
    """Returns what `torch.tensor` does, which makes tensors where no mode sees it."""
    made = _TENSOR(numbers, **named)
    return made if device is None else made.to(device)


@contextmanager
def pretended_device() -> Generator[None]:
    """Has torch know `DEVICE` within the block."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a weight's own type changes with that of numbers
    try:
        with torch.random.fork_rng(devices=[]), mock.patch.object(torch, "tensor", _tensor), _Made():
            torch.manual_seed(0)
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def move(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Returns the pipeline itself, its weights on `DEVICE`."""
    for part in pipeline.components.values():
        for module in part.modules() if isinstance(part, nn.Module) else ():
            for name, weight in module.named_parameters(recurse=False):
                module.register_parameter(name, nn.Parameter(PretendedTensor(weight.detach()), requires_grad=False))
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = PretendedTensor(buffer)
    return pipeline


class _Made(TorchDispatchMode):
    """Sees tensors made for the device out of nothing, or of the CPU's."""

    def __torch_dispatch__(
        self, operation: Any, _: object, given: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(operation, given, named or {})


def _compute(operation: Any, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
    name, tensors = operation._schema.name, [leaf for leaf in tree_leaves((given, named)) if isinstance(leaf, Tensor)]
    own = [tensor for tensor in tensors if isinstance(tensor, PretendedTensor)]
    strangers = [tensor for tensor in tensors if not isinstance(tensor, PretendedTensor) and tensor.dim() > 0]
    if own and strangers and name not in MAY_MIX:
        raise RuntimeError(f"{name}: expected all tensors on one device, found some on {DEVICE} and some on the CPU")
    is_own = bool(own)
    if (device := named.get("device")) is not None:
        is_own = torch.device(device).type in (DEVICE.type, SHAPES_ONLY.type)
        named = {**named, "device": torch.device("cpu")}
    found = operation(*tree_map(_held, list(given)), **tree_map(_held, dict(named)))
    if name == "aten::copy_":
        return given[0]
    if not is_own:
        return found
    if name in SUMS:
        _disturb(found)
    already = {id(tensor.held): tensor for tensor in own}  # what an operation changed in place is what it was given
    return tree_map(lambda one: already[id(one)] if id(one) in already else _wrapped(one), found)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, PretendedTensor) else value


def _wrapped(value: Any) -> Any:
    return PretendedTensor(value) if isinstance(value, Tensor) else value


def _disturb(found: Tensor) -> None:
    if found.is_floating_point():
        units = UNITS_IN_THE_LAST_PLACE * torch.finfo(found.dtype).eps
        found.mul_(1.0 + units * (2.0 * torch.rand_like(found) - 1.0))


def _moved_lists(place: Any) -> Any:
    if isinstance(place, tuple):
        return tuple(map(_moved_lists, place))
    return PretendedTensor(torch.tensor(place)) if isinstance(place, list) else place
