"""Drift is read off the weights: how much changed, and where."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from validation.drift import weight_drift
from validation.report.effects import drift_sentence


def copied(pipeline: Any, **changes: Any) -> Any:
    parts = {n: copy.deepcopy(p) if isinstance(p, torch.nn.Module) else p for n, p in pipeline.components.items()}
    return SimpleNamespace(components=parts | changes)


def weight(pipeline: Any, part: str, containing: str) -> torch.Tensor:
    module = pipeline.components[part]
    return next(p for name, p in module.named_parameters() if containing in name)


def test_an_equal_model_has_not_drifted(tiny_pipeline: Any):
    drift = weight_drift(tiny_pipeline, copied(tiny_pipeline))
    assert (drift.changed, drift.largest, drift.outside, drift.unmatched) == (0, (), (), ())
    assert {part.part for part in drift.parts} == {"text_encoder", "unet", "vae"}
    assert all(part.relative == 0 for part in drift.parts)
    assert drift_sentence(drift).startswith("None of")


@torch.no_grad()
def test_a_change_is_measured_and_placed(tiny_pipeline: Any):
    candidate = copied(tiny_pipeline)
    weight(candidate, "unet", "attn2.to_k").mul_(1.25)
    drift = weight_drift(tiny_pipeline, candidate)
    assert (drift.changed, drift.outside) == (1, ())
    assert "attn2.to_k" in drift.largest[0].name
    assert drift.largest[0].relative == pytest.approx(0.25)
    assert "none of them outside the layers that read the prompt" in drift_sentence(drift)
    weight(candidate, "vae", "conv_in.weight").add_(1)
    weight(candidate, "unet", "attn1.to_k").mul_(3)
    drift = weight_drift(tiny_pipeline, candidate)
    assert drift.changed == 3
    assert [name.split(".")[0] for name in drift.outside] == ["unet", "vae"]
    assert drift.largest[0].relative == max(tensor.relative or 0 for tensor in drift.largest)


@torch.no_grad()
def test_weights_that_are_not_numbers_have_no_figure_and_come_first(tiny_pipeline: Any):
    candidate = copied(tiny_pipeline)
    weight(candidate, "unet", "attn2.to_v").fill_(math.nan)
    weight(candidate, "unet", "attn2.to_k").mul_(2)
    drift = weight_drift(tiny_pipeline, candidate)
    assert [tensor.relative for tensor in drift.largest] == [None, pytest.approx(1)]


def test_tensors_that_do_not_match_are_named(tiny_pipeline: Any):
    candidate = copied(tiny_pipeline, vae=torch.nn.Linear(2, 2))
    drift = weight_drift(tiny_pipeline, candidate)
    assert "vae.weight" in drift.unmatched
    assert any(name.startswith("vae.encoder") for name in drift.unmatched)
    assert "in one model only" in drift_sentence(drift)


@torch.no_grad()
def test_of_a_text_encoder_only_the_end_of_what_is_read_reads_the_prompt(tiny_pipeline: Any):
    layers = tiny_pipeline.text_encoder.config.num_hidden_layers
    for layer in range(layers):
        candidate = copied(tiny_pipeline)
        weight(candidate, "text_encoder", f"layers.{layer}.mlp.fc2.weight").add_(1)
        drift = weight_drift(tiny_pipeline, candidate)
        assert (drift.changed, len(drift.outside)) == (1, int(layer < layers - 1))
