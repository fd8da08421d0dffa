"""The same edit on CUDA as on the CPU, within a tolerance: `pytest -m gpu`, where there is a device."""

import pytest
import torch
from torch import Tensor

import scapre
from scapre import Concept

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = 1e-6
"""Relative distance of Δ, for a model in float64."""


@pytest.mark.parametrize("method", ["scapre", "uce", "scapre-released"])
def test_cuda_and_cpu_agree(make_pipeline, method: str) -> None:
    def delta(device: str, target: str = "cat") -> Tensor:
        pipeline = make_pipeline().to(device)
        before = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
        edit = scapre.unlearn(pipeline, [Concept(target)], ["dog"], method, vocabulary=0)
        edit.apply(pipeline)
        after = pipeline.unet.state_dict()
        return torch.cat([(after[name] - before[name]).flatten().cpu() for name in sorted(before)])

    on_cpu = delta("cpu")
    assert (delta("cuda") - on_cpu).norm() < TOLERANCE * on_cpu.norm()
    assert (delta("cuda", "bird") - on_cpu).norm() > 1000 * TOLERANCE * on_cpu.norm()  # the control
