"""Put on, taken off, saved, loaded: bit for bit."""

import dataclasses
import itertools
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_pipelines import BUILDERS, build
from torch import nn

import scapre
from scapre import BaseMismatchError, CheckpointError, Concept, Edit, EditSpec
from scapre.architectures import read_pipeline
from scapre.determinism import single_threaded
from scapre.edit import build_edit


def bits(pipeline) -> dict[str, bytes]:
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    state = {f"{part}.{name}": held for part in parts for name, held in parts[part].state_dict().items()}
    return {name: tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in state.items()}


def unlearn(pipeline, **dials) -> Edit:
    return scapre.unlearn(pipeline, [Concept("cat")], ["dog"], **{"vocabulary": 0, **dials})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_revert_gives_back_every_bit(make_pipeline, dtype: torch.dtype) -> None:
    pipeline = make_pipeline(dtype=dtype)
    first = next(p for n, p in pipeline.unet.named_parameters() if n.endswith("attn2.to_k.weight"))
    first.data[0, 0] = -0.0
    before = bits(pipeline)
    edit = unlearn(pipeline)
    edit.apply(pipeline)
    after = bits(pipeline)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == set(edit.changes)
    assert scapre.base_digest(pipeline) == edit.edited_digest != edit.base_digest
    edit.revert(pipeline)
    assert bits(pipeline) == before


@cache
def awkward_pipeline(family: str, dtype: torch.dtype) -> DiffusionPipeline:
    """A pipeline whose projections hold -0.0 and the smallest and largest numbers of their type."""
    pipeline, limits = build(family, dtype=dtype), torch.finfo(dtype)
    for weight in read_pipeline(pipeline).weights.projections.values():
        weight.data.view(-1)[:4] = torch.tensor([-0.0, limits.smallest_normal / 2, -limits.tiny, limits.max / 4])
    return pipeline


def random_edit(pipeline: DiffusionPipeline, seed: int, scale: float, kept_fraction: float) -> Edit:
    generator, base, deltas = torch.Generator().manual_seed(seed), read_pipeline(pipeline).weights, {}
    for name, weight in base.projections.items():
        moves = torch.rand(len(weight), 1, generator=generator, dtype=torch.float64) >= kept_fraction
        deltas[name] = scale * moves * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    spec = EditSpec("uce", (), (), {}, base.digest)
    return build_edit(base, spec, deltas=deltas, diagnostics={})


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(BUILDERS)),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    st.integers(0, 10_000),
    st.floats(1e-9, 100.0),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_every_edit_of_every_architecture_comes_off_to_the_bit(family, dtype, seed, scale, kept_fraction) -> None:
    pipeline = awkward_pipeline(family, dtype)
    before = bits(pipeline)
    edit = random_edit(pipeline, seed, scale, kept_fraction)
    edit.apply(pipeline)
    after = bits(pipeline)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name, change in edit.changes.items() if bool(change.any())}
    assert edit.is_identity == (not changed)
    assert not changed if kept_fraction == 1.0 else changed or scale < 1e-3
    assert read_pipeline(pipeline).weights.digest == edit.edited_digest
    edit.revert(pipeline)
    assert bits(pipeline) == before


@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_another_base_of_the_same_family_is_refused_with_both_digests(family: str) -> None:
    first, second = build(family, dtype=torch.float32), build(family, dtype=torch.float32, seed=1)
    edit, before = random_edit(first, 0, 1.0, 0.5), bits(second)
    for refused in (edit.apply, edit.revert):
        with pytest.raises(BaseMismatchError) as refusal:
            refused(second)
        assert scapre.base_digest(second) in str(refusal.value)
        assert (edit.base_digest if refused == edit.apply else edit.edited_digest) in str(refusal.value)
    assert bits(second) == before
    half = build(family, dtype=torch.bfloat16)
    with pytest.raises(BaseMismatchError, match="has 16 bits a number instead of 32: load it in its own precision"):
        edit.apply(half)


def test_negative_zero_of_an_untouched_row_keeps_its_sign(pipeline) -> None:
    first = next(p for n, p in pipeline.unet.named_parameters() if n.endswith("attn2.to_k.weight"))
    first.data[0] = -0.0  # an empty row has no relevance, so nothing may happen to it
    edit = unlearn(pipeline)
    assert not edit.changes[min(edit.changes)][0].any()


def test_edits_are_not_stacked(pipeline) -> None:
    edit = unlearn(pipeline)
    with pytest.raises(BaseMismatchError, match="wears this edit"):
        edit.revert(pipeline)
    edit.apply(pipeline)
    with pytest.raises(BaseMismatchError, match="the base with this very edit on it"):
        edit.apply(pipeline)
    with pytest.raises(BaseMismatchError, match="compute one edit of all"):
        scapre.unlearn(pipeline, ["horse"], vocabulary=0).apply(build("stable-diffusion-1"))
    edit.revert(pipeline)


def test_a_base_of_another_kind_is_told(pipeline) -> None:
    with pytest.raises(BaseMismatchError, match="another kind of model"):
        unlearn(pipeline).apply(build("pixart-sigma"))


def test_one_changed_bit_of_the_text_encoder_is_another_base(pipeline) -> None:
    before = scapre.base_digest(pipeline)
    pipeline.text_encoder.get_parameter("final_layer_norm.bias").data[0] += 1e-12
    assert scapre.base_digest(pipeline) != before


def test_parts_the_edit_does_not_rest_on_do_not_enter_the_digest(pipeline) -> None:
    before = scapre.base_digest(pipeline)
    pipeline.unet.conv_in.weight.data += 1.0
    assert scapre.base_digest(pipeline) == before


def test_save_and_load_give_the_same_edit(pipeline, tmp_path: Path) -> None:
    edit = unlearn(pipeline)
    path = edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(path)
    assert (loaded.digest, loaded.spec, loaded.edited_digest) == (edit.digest, edit.spec, edit.edited_digest)
    assert loaded.diagnostics == {key: value for key, value in edit.diagnostics.items() if key != "seconds"}
    again = loaded.save(tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()
    loaded.apply(pipeline)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "edit.safetensors"]


def test_delta_is_edited_minus_base(pipeline) -> None:
    edit = unlearn(pipeline)
    name = min(edit.changes)
    base = pipeline.unet.get_parameter(name.removeprefix("unet.")).detach().clone()
    edit.apply(pipeline)
    edited = pipeline.unet.get_parameter(name.removeprefix("unet.")).detach()
    assert torch.equal(edit.delta(name, base), edited - base)


def test_saved_header_says_where_the_edit_comes_from(pipeline, tmp_path: Path) -> None:
    edit = unlearn(pipeline)
    with safe_open(edit.save(tmp_path / "edit.safetensors"), framework="pt") as file:
        content = json.loads(file.metadata()["scapre"])
    assert content["base_digest"] == edit.base_digest
    assert content["spec"]["dials"]["ridge"] == edit.spec.dials["ridge"]
    assert "seconds" not in content["diagnostics"]


def test_an_altered_file_is_refused(pipeline, tmp_path: Path) -> None:
    path = unlearn(pipeline).save(tmp_path / "edit.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="altered"):
        Edit.load(path)
    path.write_bytes(bytes(content[: len(content) // 2]))
    with pytest.raises(CheckpointError, match="could not read"):
        Edit.load(path)
    with pytest.raises(CheckpointError, match="could not read"):
        Edit.load(tmp_path / "nothing.safetensors")


def test_a_place_that_cannot_be_written_is_named(pipeline, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="could not write"):
        unlearn(pipeline).save(tmp_path / "file" / "edit.safetensors")
    with pytest.raises(CheckpointError, match="found the folder"):
        unlearn(pipeline).save(tmp_path)


@pytest.mark.parametrize(
    "header", ["{", "[]", "{}", '{"format":1}', '{"format":1,"spec":{"format":7}}', '{"format":2}', '{"format":3}']
)
def test_a_file_without_the_header_of_an_edit_is_refused(pipeline, tmp_path: Path, header: str) -> None:
    changes = {name: change.clone() for name, change in unlearn(pipeline).changes.items()}
    save_file(changes, tmp_path / "edit.safetensors", {"scapre": header})
    with pytest.raises(CheckpointError, match=r"edit of format 2|header of an edit|other tensors"):
        Edit.load(tmp_path / "edit.safetensors")


def test_an_edit_that_would_not_make_what_it_says_is_refused_before_anything_changes(pipeline) -> None:
    edit, before = unlearn(pipeline), bits(pipeline)
    wrong = dataclasses.replace(edit, edited_digest="sha256:" + "0" * 64)
    with pytest.raises(CheckpointError, match="altered"):
        wrong.apply(pipeline)
    assert bits(pipeline) == before
    edit.apply(pipeline)  # the control
    assert bits(pipeline) != before


def rewritten(path: Path, change) -> Path:
    """Writes the file anew with its header changed."""
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["scapre"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(content)
    save_file(tensors, path, {"scapre": json.dumps(content)})
    return path


def altered_figure(content) -> None:
    content["diagnostics"]["residual_response"]["cat"] = 0.0


def altered_result(content) -> None:
    content["edited_digest"] = "0" * 64


def as_format_1(content) -> None:
    content["format"] = 1
    del content["seal"]


@pytest.mark.parametrize("change", [altered_figure, altered_result])
def test_what_a_file_says_of_its_edit_is_sealed(pipeline, tmp_path: Path, change) -> None:
    path = unlearn(pipeline).save(tmp_path / "edit.safetensors")
    with pytest.raises(CheckpointError, match="does not fit its seal"):
        Edit.load(rewritten(path, change))


@pytest.mark.parametrize("change", [lambda _: None, as_format_1])
def test_a_file_written_anew_and_one_of_format_1_are_read(pipeline, tmp_path: Path, change) -> None:
    edit = unlearn(pipeline)
    read = Edit.load(rewritten(edit.save(tmp_path / "edit.safetensors"), change))
    assert (read.digest, read.edited_digest) == (edit.digest, edit.edited_digest)


def test_the_text_of_an_edit_is_short_and_names_what_it_forgets(pipeline) -> None:
    edit = scapre.unlearn(pipeline, ["cat", "dog", "horse", "zebra", "apple", "pear", "tree"], ["park"], vocabulary=0)
    assert f"{edit!r}".startswith("Edit(scapre forgets apple, cat, dog, horse, pear and 2 more; ")
    assert len(f"{edit!r}") < 200


@pytest.mark.parametrize("flipped", [1, 3, 8])
@pytest.mark.parametrize("way", ["apply", "revert"])
def test_what_interrupts_an_edit_leaves_the_model_as_it_was(make_pipeline, monkeypatch, way: str, flipped: int) -> None:
    pipeline = make_pipeline()
    edit = unlearn(pipeline)
    if way == "revert":
        edit.apply(pipeline)
    before, flip, flips = bits(pipeline), Edit._flip_in_place, itertools.count(1)

    def interrupted(self: Edit, name: str, held: torch.Tensor) -> None:
        flip(self, name, held)
        if next(flips) == flipped:
            raise KeyboardInterrupt

    monkeypatch.setattr(Edit, "_flip_in_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(edit, way)(pipeline)
    assert bits(pipeline) == before
    getattr(edit, way)(pipeline)
    assert bits(pipeline) != before


def test_an_impatient_interrupt_changes_nothing_either(make_pipeline, monkeypatch) -> None:
    pipeline = make_pipeline()
    edit, before, flip, flips = unlearn(pipeline), bits(pipeline), Edit._flip_in_place, itertools.count(1)

    def interrupted(self: Edit, name: str, held: torch.Tensor) -> None:
        if (flipped := next(flips)) == 5:  # the second of those that are taken back
            raise KeyboardInterrupt
        flip(self, name, held)
        if flipped in (3, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(Edit, "_flip_in_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        edit.apply(pipeline)
    assert next(flips) == 8  # three there, three back, one of them anew
    assert bits(pipeline) == before


def test_an_edit_waits_for_one_that_is_computed_of_the_same_model(make_pipeline) -> None:
    pipeline, other = make_pipeline(), make_pipeline()
    first, expected = unlearn(other), unlearn(other, erasure_strength=2.0)
    began, applied = threading.Event(), []

    def apply() -> None:
        began.set()
        first.apply(pipeline)
        applied.append(True)

    with ThreadPoolExecutor(1) as pool:

        def on_progress(*_: int) -> None:
            if not began.is_set():
                pool.submit(apply)
                began.wait(timeout=60)
                time.sleep(0.1)
            assert not applied

        edit = unlearn(pipeline, erasure_strength=2.0, on_progress=on_progress)
    assert applied
    assert edit.digest == expected.digest
    assert scapre.base_digest(pipeline) == first.edited_digest


def test_a_model_that_is_changed_while_its_edit_is_computed_is_told(make_pipeline) -> None:
    pipeline = make_pipeline()
    weight = next(p for n, p in pipeline.unet.named_parameters() if n.endswith("attn2.to_v.weight"))

    def on_progress(*_: int) -> None:
        weight.data[0, 0] += 1.0

    with pytest.raises(BaseMismatchError, match=r"found unet\..*attn2.to_v.weight changed meanwhile"):
        unlearn(pipeline, on_progress=on_progress)


def test_an_edit_goes_on_while_another_is_computed(pipeline) -> None:
    edit, began, may_end = unlearn(pipeline), threading.Event(), threading.Event()

    def compute() -> None:
        with single_threaded():
            began.set()
            may_end.wait(timeout=60)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(compute)
        began.wait(timeout=60)
        try:
            pool.submit(edit.apply, pipeline).result(timeout=30)
            pool.submit(edit.revert, pipeline).result(timeout=30)
        finally:
            may_end.set()


def test_a_file_behind_a_link_is_replaced_and_not_the_link(pipeline, tmp_path: Path) -> None:
    edit, link = unlearn(pipeline), tmp_path / "latest.safetensors"
    link.symlink_to(tmp_path / "kept.safetensors")
    edit.save(link)
    assert link.is_symlink()
    assert Edit.load(tmp_path / "kept.safetensors").digest == edit.digest


def test_what_is_no_file_is_not_replaced(pipeline, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="expected a place for a file, found the device"):
        unlearn(pipeline).save(pipe)
    assert pipe.is_fifo()
