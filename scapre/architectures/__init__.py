"""One small adapter per family of models; anything without one is refused by name."""

from typing import Any

from scapre.architectures import stable_diffusion
from scapre.architectures.base import BaseModel
from scapre.errors import UnsupportedArchitectureError

__all__ = ["BaseModel", "check_pipeline_class", "read_pipeline"]


def check_pipeline_class(name: str) -> None:
    """Checks that there is an adapter for pipelines of class `name`.

    Raises:
        UnsupportedArchitectureError: there is none; lists the supported ones.
    """
    if name not in stable_diffusion.PIPELINE_CLASSES:
        supported = ", ".join(sorted(stable_diffusion.PIPELINE_CLASSES))
        raise UnsupportedArchitectureError(f"expected a pipeline among {supported}, found {name}; nothing was changed")


def read_pipeline(pipeline: Any) -> BaseModel:
    """Returns what the engine needs of a loaded pipeline."""
    check_pipeline_class(type(pipeline).__name__)
    return stable_diffusion.read_pipeline(pipeline)
