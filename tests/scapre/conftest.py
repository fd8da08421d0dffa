"""Small pipelines of the real classes with random weights, in strict settings."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA refuses deterministic algorithms
os.environ["HF_HUB_OFFLINE"] = "1"  # a mistyped path would otherwise wait minutes for a network that is not needed

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from hypothesis import HealthCheck, settings
from tiny_pipelines import build

diffusers_logging.set_verbosity_error()
settings.register_profile("engine", deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
settings.load_profile("engine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:  # the hook sees the other packages' tests too
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.filterwarnings("error", "ignore::scapre.errors.UnlearningWarning"))


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def pipeline() -> StableDiffusionPipeline:
    """A pipeline in float64."""
    return build("stable-diffusion-1")


@pytest.fixture
def make_pipeline() -> Callable[..., StableDiffusionPipeline]:
    """The builder itself, for other seeds, types and widths."""
    return partial(build, "stable-diffusion-1")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder in float32."""
    folder = tmp_path / "base"
    build("stable-diffusion-1", dtype=torch.float32).save_pretrained(folder)
    return folder
