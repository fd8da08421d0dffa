"""Put on, taken off, saved, loaded: bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import scapre
from scapre import BaseMismatchError, CheckpointError, Concept, Edit


def bits(pipeline) -> dict[str, bytes]:
    state = {**pipeline.unet.state_dict(), **pipeline.text_encoder.state_dict()}
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
    assert {f"unet.{name}" for name in changed} == set(edit.changes)
    assert scapre.base_digest(pipeline) == edit.edited_digest != edit.base_digest
    edit.revert(pipeline)
    assert bits(pipeline) == before


def test_negative_zero_of_an_untouched_row_keeps_its_sign(pipeline) -> None:
    first = next(p for n, p in pipeline.unet.named_parameters() if n.endswith("attn2.to_k.weight"))
    first.data[0] = -0.0  # an empty row has no relevance, so nothing may happen to it
    edit = unlearn(pipeline)
    assert not edit.changes[min(edit.changes)][0].any()


def test_another_base_is_refused_and_left_alone(pipeline, make_pipeline) -> None:
    edit, other = unlearn(pipeline), make_pipeline(seed=1)
    before = bits(other)
    with pytest.raises(BaseMismatchError) as refusal:
        edit.apply(other)
    assert edit.base_digest in str(refusal.value)
    assert scapre.base_digest(other) in str(refusal.value)
    assert bits(other) == before


def test_edits_are_not_stacked(pipeline) -> None:
    edit = unlearn(pipeline)
    with pytest.raises(BaseMismatchError, match="wears this edit"):
        edit.revert(pipeline)
    edit.apply(pipeline)
    with pytest.raises(BaseMismatchError, match="pristine base"):
        edit.apply(pipeline)
    edit.revert(pipeline)


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
    with pytest.raises(CheckpointError, match="could not write"):
        unlearn(pipeline).save(tmp_path / "missing" / "edit.safetensors")
