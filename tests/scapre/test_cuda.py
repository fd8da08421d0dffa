"""The same edit on CUDA as on the CPU, within a tolerance: `pytest -m gpu`, where there is a device.

Sums are taken in another order there, so bytes differ from those of the CPU; on either they are the same every time.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import BUILDERS, build, draw
from torch import Tensor

import scapre
from scapre import Concept, Edit
from scapre.methods import METHODS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 1e-3}
"""Distance of Δ on CUDA from Δ on the CPU, relative to its norm, by the model's type."""
TOLERANCE_OF_NORMS = 1e-5
"""The same for a model in float64 whose text encoder (T5, Gemma) takes its norms in float32 all the same."""
TARGETS = (Concept("cat", aliases=("kitten",)), Concept("van gogh", kind="style"))


def unlearn(pipeline: DiffusionPipeline, method: str = "scapre", **options: Any) -> Edit:
    return scapre.unlearn(pipeline, TARGETS, ["dog", "horse"], method, vocabulary=0, **options)


def weights(pipeline: DiffusionPipeline) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": weight.detach().cpu().clone()
        for part in pipeline.components
        if isinstance(getattr(pipeline, part), torch.nn.Module)
        for name, weight in getattr(pipeline, part).state_dict().items()
    }


def distance(one: Edit, other: Edit, base: dict[str, Tensor]) -> float:
    """Returns the distance of Δ from the other Δ, relative to its norm."""
    found, expected = (
        torch.cat([(edit.flip(name, base[name]).double() - base[name].double()).flatten() for name in other.changes])
        for edit in (one, other)
    )
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_every_method_agrees(method: str, dtype: torch.dtype) -> None:
    pipeline = build("stable-diffusion-1", dtype=dtype)
    base, here = weights(pipeline), unlearn(pipeline, method)
    there = unlearn(copy.deepcopy(pipeline).to("cuda"), method)
    assert distance(there, here, base) < TOLERANCES[dtype]
    assert there.base_digest == here.base_digest
    control = scapre.unlearn(pipeline, ["bird"], ["dog", "horse"], method, vocabulary=0)
    assert distance(control, here, base) > 0.1


@pytest.mark.parametrize(
    "dials",
    [
        {"row_weights": "per_target"},
        {"row_weights": "shared", "floor": 0.5},
        {"balance": "answers"},
        {"rank": 1},
        {"geometry": 0.1},
        {"vocabulary": 200},
    ],
    ids=lambda dials: next(iter(dials)),
)
def test_every_component_agrees(dials: dict[str, Any]) -> None:
    pipeline = build("stable-diffusion-1")
    asked: dict[str, Any] = {"vocabulary": 0, **dials}
    here, there = (
        scapre.unlearn(copy.deepcopy(pipeline).to(device), TARGETS, ["dog", "horse"], **asked)
        for device in ("cpu", "cuda")
    )
    base = weights(pipeline)
    assert distance(there, here, base) < TOLERANCES[torch.float64]


@pytest.mark.parametrize("family", BUILDERS)
def test_every_architecture_agrees_and_takes_an_edit_made_elsewhere(family: str) -> None:
    pipeline = build(family)
    base, here = weights(pipeline), unlearn(pipeline)
    pipeline.to("cuda")
    there = unlearn(pipeline)
    assert distance(there, here, base) < TOLERANCE_OF_NORMS
    before = weights(pipeline)
    here.apply(pipeline)  # an edit of either device fits a model on the other
    worn = weights(pipeline)
    assert any(not torch.equal(worn[part], before[part]) for part in here.changes)
    assert all(torch.equal(worn[part], before[part]) for part in before.keys() - here.changes.keys())
    here.revert(pipeline)
    assert all(torch.equal(held, before[part]) for part, held in weights(pipeline).items())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_same_bytes_every_time_whatever_the_caller_allows(method: str) -> None:
    pipeline = build("stable-diffusion-1", dtype=torch.float16).to("cuda")
    first = unlearn(pipeline, method).digest
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cuda"):
            assert unlearn(pipeline, method).digest == first
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_a_cache_serves_each_kind_of_device_its_own_features(tmp_path: Path) -> None:
    pipeline = build("stable-diffusion-1", dtype=torch.float32)
    here, there = unlearn(pipeline).digest, unlearn(copy.deepcopy(pipeline).to("cuda")).digest
    devices: Sequence[str] = ("cuda", "cpu", "cuda", "cpu")
    found = [unlearn(copy.deepcopy(pipeline).to(device), cache=tmp_path / "features").digest for device in devices]
    assert found == [there, here, there, here]


def test_an_off_loaded_pipeline_takes_an_edit_and_gives_it_back() -> None:
    pipeline = build("stable-diffusion-1", dtype=torch.float16)
    base = weights(pipeline)
    pipeline.enable_model_cpu_offload()
    edit = unlearn(pipeline)
    before = draw(pipeline, "stable-diffusion-1", "cat")
    edit.apply(pipeline)
    assert not torch.equal(draw(pipeline, "stable-diffusion-1", "cat"), before)
    edit.revert(pipeline)
    assert torch.equal(draw(pipeline, "stable-diffusion-1", "cat"), before)
    assert all(torch.equal(held, base[name]) for name, held in weights(pipeline).items())


def test_weights_that_are_elsewhere_are_refused() -> None:
    pipeline = build("stable-diffusion-1", dtype=torch.float16)
    pipeline.enable_sequential_cpu_offload()
    with pytest.raises(scapre.UnsupportedArchitectureError, match="off-loaded"):
        unlearn(pipeline)
