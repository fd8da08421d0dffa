"""The same edit on other devices as on the CPU, within a tolerance: on CUDA (`pytest -m gpu`), and on a pretended one.

Sums are taken in another order there, so bytes differ from those of the CPU; on CUDA they are the same every time.
"""

import copy
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from pretended_device import DEVICE, PretendedTensor, move, pretended_device
from tiny_pipelines import BUILDERS, build, draw
from torch import Tensor

import scapre
from scapre import Concept, Edit
from scapre.checkpoint import read_base
from scapre.methods import METHODS

# torch asks a device that it does not know for a norm in an old way
pytestmark = pytest.mark.filterwarnings("ignore:at..frobenius_norm")
ON_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_cuda(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that CUDA alone can run."""
    for mark in ON_CUDA:
        test = mark(test)
    return test


Move = Callable[[DiffusionPipeline], DiffusionPipeline]
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 1e-3}
"""Distance of Δ on another device from Δ on the CPU, relative to its norm, by the model's type."""
TOLERANCE_OF_NORMS = 1e-5
"""The same for a model in float64 whose text encoder (T5, Gemma) takes its norms in float32 all the same."""
TARGETS = (Concept("cat", aliases=("kitten",)), Concept("van gogh", kind="style"))


@pytest.fixture(params=[pytest.param("cuda", marks=ON_CUDA), "pretended"])
def there(request: pytest.FixtureRequest) -> Generator[Move]:
    """Yields what moves a pipeline to another device."""
    if request.param == "cuda":
        yield lambda pipeline: pipeline.to("cuda")
        return
    with pretended_device():
        yield move


def unlearn(pipeline: DiffusionPipeline, method: str = "scapre", **options: Any) -> Edit:
    return scapre.unlearn(pipeline, TARGETS, ["dog", "horse"], method, vocabulary=0, **options)


def weights(pipeline: DiffusionPipeline) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": weight.detach().cpu().clone()
        for part in pipeline.components
        if isinstance(getattr(pipeline, part), torch.nn.Module)
        for name, weight in getattr(pipeline, part).state_dict().items()
    }


def distance(one: Edit, other: Edit, pipeline: DiffusionPipeline) -> float:
    """Returns the distance of Δ from the other Δ, relative to its norm; `pipeline` is their base, on the CPU."""
    base = {name: weight.detach() for name, weight in read_base(pipeline).weights.editable.items()}
    found, expected = (
        torch.cat([(edit.flip(name, base[name]).double() - base[name].double()).flatten() for name in other.changes])
        for edit in (one, other)
    )
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_every_method_agrees(there: Move, method: str, dtype: torch.dtype) -> None:
    pipeline = build("stable-diffusion-1", dtype=dtype)
    expected, found = unlearn(pipeline, method), unlearn(there(copy.deepcopy(pipeline)), method)
    assert distance(found, expected, pipeline) < TOLERANCES[dtype]
    assert found.base_digest == expected.base_digest
    control = scapre.unlearn(pipeline, ["bird"], ["dog", "horse"], method, vocabulary=0)
    assert distance(control, expected, pipeline) > 0.1


@pytest.mark.parametrize(
    ("method", "dials"),
    [
        ("scapre", {"row_weights": "per_target"}),
        ("scapre", {"row_weights": "shared", "floor": 0.5}),
        ("scapre", {"balance": "answers"}),
        ("scapre", {"rank": 1}),
        ("scapre", {"geometry": 0.1}),
        ("scapre", {"vocabulary": 200}),
        ("scapre-released", {"ridge": 0.0}),
        ("scapre-encoder", {"balance": "answers"}),
        ("scapre-encoder", {"vocabulary": 200}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_every_component_agrees(there: Move, method: str, dials: dict[str, Any]) -> None:
    pipeline, asked = build("stable-diffusion-1"), {"vocabulary": 0, **dials}
    expected, found = (
        scapre.unlearn(one, TARGETS, ["dog", "horse"], method, **asked)
        for one in (pipeline, there(copy.deepcopy(pipeline)))
    )
    assert distance(found, expected, pipeline) < TOLERANCES[torch.float64]


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *((family, "scapre") for family in BUILDERS),
        *((f"stable-diffusion-{release}", "scapre-encoder") for release in ("1", "2", "xl")),
    ],
)
def test_every_architecture_agrees_and_takes_an_edit_made_elsewhere(there: Move, family: str, method: str) -> None:
    pipeline = build(family)
    expected, moved = unlearn(pipeline, method), there(copy.deepcopy(pipeline))
    assert distance(unlearn(moved, method), expected, pipeline) < TOLERANCE_OF_NORMS
    before, changed = weights(moved), read_base(moved).weights.editable
    kept = {name: weight.detach().cpu().clone() for name, weight in changed.items()}
    expected.apply(moved)  # an edit of either device fits a model on the other
    assert any(not torch.equal(changed[name].cpu(), kept[name]) for name in expected.changes)
    assert all(torch.equal(changed[name].cpu(), kept[name]) for name in kept.keys() - expected.changes.keys())
    expected.revert(moved)
    assert all(torch.equal(held, before[part]) for part, held in weights(moved).items())


@on_cuda
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


@on_cuda
def test_a_cache_serves_each_kind_of_device_its_own_features(tmp_path: Path) -> None:
    pipeline = build("stable-diffusion-1", dtype=torch.float32)
    here, there = unlearn(pipeline).digest, unlearn(copy.deepcopy(pipeline).to("cuda")).digest
    devices: Sequence[str] = ("cuda", "cpu", "cuda", "cpu")
    found = [unlearn(copy.deepcopy(pipeline).to(device), cache=tmp_path / "features").digest for device in devices]
    assert found == [there, here, there, here]


@on_cuda
@pytest.mark.parametrize("method", ["scapre", "scapre-encoder"])
def test_an_off_loaded_pipeline_takes_an_edit_and_gives_it_back(method: str) -> None:
    pipeline = build("stable-diffusion-1", dtype=torch.float16)
    base = weights(pipeline)
    pipeline.enable_model_cpu_offload()
    edit = unlearn(pipeline, method)
    before = draw(pipeline, "stable-diffusion-1", "cat")
    edit.apply(pipeline)
    assert not torch.equal(draw(pipeline, "stable-diffusion-1", "cat"), before)
    edit.revert(pipeline)
    assert torch.equal(draw(pipeline, "stable-diffusion-1", "cat"), before)
    assert all(torch.equal(held, base[name]) for name, held in weights(pipeline).items())


@on_cuda
def test_weights_that_are_elsewhere_are_refused() -> None:
    pipeline = build("stable-diffusion-1", dtype=torch.float16)
    pipeline.enable_sequential_cpu_offload()
    with pytest.raises(scapre.UnsupportedArchitectureError, match="off-loaded"):
        unlearn(pipeline)


def test_the_pretended_device_is_no_other_name_of_the_cpu() -> None:
    ours, source = torch.ones(3, 3), torch.Generator().manual_seed(0)
    numbers = torch.randn(3, 3, generator=source)
    with pretended_device():
        theirs = numbers.to(DEVICE)
        assert isinstance(theirs, PretendedTensor)
        assert theirs.device == DEVICE
        assert torch.equal(theirs.cpu(), numbers)
        for mix in (lambda: theirs + ours, lambda: ours @ theirs, lambda: torch.cat([theirs, ours])):
            with pytest.raises(RuntimeError, match="one device"):
                mix()
        product = (theirs @ theirs).cpu()
    assert not torch.equal(product, numbers @ numbers)
    assert torch.allclose(product, numbers @ numbers, atol=1e-5)
