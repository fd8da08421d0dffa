"""What an edit is given away as: single files and LoRAs that say the same as the edit, and never overwrite unasked."""

import dataclasses
import errno
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_pipelines import BUILDERS, build, clip_tokenizer, draw

import scapre
from scapre import (
    BaseMismatchError,
    CheckpointError,
    Concept,
    DialError,
    Edit,
    SingleFile,
    UnsupportedArchitectureError,
)
from scapre.checkpoint import single_file
from scapre.checkpoint.ldm_layout import blocks_per_level, own_attention_name, stored_unet_name
from scapre.checkpoint.tensor_files import read_header
from scapre.exports import lora
from scapre.exports.lora import approximate
from scapre.text import plain_name

STABLE = {
    "stable-diffusion-1": {"width": 64},
    "stable-diffusion-2": {"width": 64, "clip": {"hidden_act": "gelu"}},
    "stable-diffusion-xl": {"width": 96},
}
UNET = "model.diffusion_model."
CAT = [Concept("cat", "unsafe")]


def save(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    pipeline = build(family, dtype=dtype, **STABLE.get(family, {}))
    pipeline.save_pretrained(folder)
    return pipeline


def unlearn(checkpoint: Path | SingleFile, **dials) -> Edit:
    return scapre.unlearn(checkpoint, CAT, ["dog"], **{"vocabulary": 0, **dials})


def _flip_bits(edit: Edit) -> dict[str, torch.Tensor]:
    return {name: change ^ 1 for name, change in edit.changes.items()}


def _drop_one(edit: Edit) -> dict[str, torch.Tensor]:
    return {name: edit.changes[name] for name in sorted(edit.changes)[1:]}


def _cut_rows(edit: Edit) -> dict[str, torch.Tensor]:
    return {name: change[1:] for name, change in edit.changes.items()}


def _add_one(edit: Edit) -> dict[str, torch.Tensor]:
    return {**edit.changes, "unet.x.weight": next(iter(edit.changes.values()))}


@pytest.mark.parametrize("alter", [_flip_bits, _drop_one, _cut_rows, _add_one])
@pytest.mark.parametrize("export", [scapre.merge, scapre.export_single_file, partial(scapre.export_lora, rank=1)])
def test_an_edit_that_would_not_make_what_it_says_is_not_exported(tmp_path: Path, export, alter) -> None:
    base = tmp_path / "base"
    save("stable-diffusion-1", base)
    edit = unlearn(base)
    out = tmp_path / ("out" if export is scapre.merge else "out.safetensors")
    with pytest.raises(CheckpointError, match="the edit's file was altered"):
        export(dataclasses.replace(edit, changes=alter(edit)), base, out)
    assert [place.name for place in tmp_path.iterdir()] == ["base"]
    export(edit, base, out)  # the control


def test_of_a_whole_and_a_sharded_text_encoder_the_one_that_is_read_is_exported(tmp_path: Path) -> None:
    base, other = tmp_path / "base", build("stable-diffusion-1", dtype=torch.float32, width=64, seed=1)
    save("stable-diffusion-1", base)
    whole = base / "text_encoder" / "model.safetensors"
    content = whole.read_bytes()
    other.text_encoder.save_pretrained(whole.parent, max_shard_size="10KB")
    whole.write_bytes(content)
    edit = unlearn(base)
    loaded = DiffusionPipeline.from_pretrained(base, local_files_only=True, safety_checker=None)
    edit.apply(loaded)
    single = scapre.export_single_file(edit, base, tmp_path / "out.safetensors")
    shutil.copytree(base / "tokenizer", tmp_path / "tokenizer")
    assert scapre.base_digest(single) == scapre.base_digest(loaded) == edit.edited_digest


def test_another_vae_is_no_part_of_a_single_file(tmp_path: Path) -> None:
    pipeline = build("stable-diffusion-1", dtype=torch.float32, width=64)
    sizes = {f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")}
    blocks = {f"num_{side}_blocks": (1, 1) for side in ("encoder", "decoder")}
    pipeline.vae = AutoencoderTiny(**sizes, **blocks)
    pipeline.save_pretrained(tmp_path / "base")
    with pytest.raises(UnsupportedArchitectureError, match=r"AutoencoderKL as vae, found AutoencoderTiny.* a folder"):
        scapre.export_single_file(unlearn(tmp_path / "base"), tmp_path / "base", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def as_single_file(folder: Path) -> Path:
    """The unedited checkpoint of `folder` as a single file beside it."""
    nothing = unlearn(folder, erasure_strength=0)
    return scapre.export_single_file(nothing, folder, folder.parent / f"{folder.name}.safetensors")


def rewrite(file: Path, change: Callable[[dict], dict]) -> None:
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(change(load_file(file)), file, metadata)


@pytest.fixture(params=sorted(STABLE))
def family(request) -> str:
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_folder_becomes_a_single_file_with_every_number_as_it_is(family: str, dtype, tmp_path: Path) -> None:
    pipeline = save(family, tmp_path / "base", dtype)
    edit = unlearn(tmp_path / "base")
    held = load_file(scapre.export_single_file(edit, tmp_path / "base", tmp_path / "out.safetensors"))
    edit.apply(pipeline)
    same = {
        "unet": convert_ldm_unet_checkpoint(dict(held), dict(pipeline.unet.config)),
        "vae": convert_ldm_vae_checkpoint(dict(held), dict(pipeline.vae.config)),
    }
    if family == "stable-diffusion-2":
        same["text_encoder"] = convert_open_clip_checkpoint(pipeline.text_encoder, held)
    else:
        same["text_encoder"] = convert_ldm_clip_checkpoint(held)
    if family == "stable-diffusion-xl":
        prefix = "conditioner.embedders.1.model."
        same["text_encoder_2"] = convert_open_clip_checkpoint(pipeline.text_encoder_2, held, prefix=prefix)
    for component, state in same.items():
        expected = {plain_name(name): held for name, held in getattr(pipeline, component).state_dict().items()}
        found = {plain_name(name): held for name, held in state.items()}
        assert set(found) == set(expected)
        assert all(found[name].dtype == dtype and torch.equal(found[name], expected[name]) for name in expected)
    converted = {name for state in same.values() for name in state}
    assert len(converted) > 100


def test_diffusers_draws_the_same_from_the_single_file(family: str, tmp_path: Path) -> None:
    pipeline = save(family, tmp_path / "base")
    edit = unlearn(tmp_path / "base")
    file = scapre.export_single_file(edit, tmp_path / "base", tmp_path / "out.safetensors")
    unsafe = {} if family == "stable-diffusion-xl" else {"safety_checker": None}
    read = type(pipeline).from_single_file(str(file), config=str(tmp_path / "base"), local_files_only=True, **unsafe)
    assert scapre.base_digest(read) == edit.edited_digest
    read.set_progress_bar_config(disable=True)
    before = draw(pipeline, family, "a photo of a cat")
    edit.apply(pipeline)
    after = draw(pipeline, family, "a photo of a cat")
    assert torch.equal(draw(read, family, "a photo of a cat"), after)
    assert not torch.equal(before, after)


def test_folder_and_single_file_have_one_digest_and_one_edit(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "base")
    edit = unlearn(tmp_path / "base")
    file = as_single_file(tmp_path / "base")
    folder_info, file_info = scapre.inspect_checkpoint(tmp_path / "base"), scapre.inspect_checkpoint(file)
    assert (folder_info.pipeline_class, folder_info.architecture) == (file_info.pipeline_class, file_info.architecture)
    assert folder_info.projections == file_info.projections
    assert scapre.base_digest(file) == edit.base_digest
    assert unlearn(SingleFile(file, tmp_path / "base" / "tokenizer")).digest == edit.digest
    with pytest.raises(CheckpointError, match="put the folder `tokenizer`"):
        unlearn(file)
    (tmp_path / "tokenizer").symlink_to(tmp_path / "base" / "tokenizer")
    assert unlearn(file).digest == edit.digest


def test_only_the_edited_bytes_of_a_single_file_change(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "base")
    edit = unlearn(tmp_path / "base")
    base = as_single_file(tmp_path / "base")
    out = scapre.export_single_file(edit, base, tmp_path / "out.safetensors")
    before, after = base.read_bytes(), out.read_bytes()
    header, info = read_header(base), scapre.inspect_checkpoint(base)
    edited = [header[info.stored_names[name]] for name in edit.changes]
    kept = bytearray(after)
    for place in edited:
        assert before[place.start : place.end] != after[place.start : place.end]
        kept[place.start : place.end] = before[place.start : place.end]
    assert bytes(kept) == before
    assert scapre.base_digest(out) == edit.edited_digest
    straight = load_file(scapre.export_single_file(edit, tmp_path / "base", tmp_path / "straight.safetensors"))
    around = load_file(out)
    assert all(torch.equal(tensor, around[name]) for name, tensor in straight.items())


def test_the_same_edit_gives_the_same_file(tmp_path: Path) -> None:
    save("stable-diffusion-1", tmp_path / "base")
    edit = unlearn(tmp_path / "base")
    files = [scapre.export_single_file(edit, tmp_path / "base", tmp_path / f"{run}.safetensors") for run in range(2)]
    files += [
        scapre.export_lora(edit, tmp_path / "base", tmp_path / f"{run}.lora.safetensors", rank=2).path
        for run in range(2)
    ]
    contents = [file.read_bytes() for file in files]
    assert contents[0] == contents[1]
    assert contents[2] == contents[3]
    with safe_open(files[0], framework="pt") as opened:
        assert json.loads(opened.metadata()["scapre"])["edit_digest"] == edit.digest


REAL_UNETS = {
    "1.5": {"cross_attention_dim": 768},
    "2.1": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "XL": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
KNOWN_NAMES = {
    "1.5": {
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (
            "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
        ),
        "mid_block.attentions.0.proj_in.weight": "middle_block.1.proj_in.weight",
        "up_blocks.0.upsamplers.0.conv.bias": "output_blocks.2.1.conv.bias",
        "up_blocks.3.attentions.2.norm.weight": "output_blocks.11.1.norm.weight",
    },
    "2.1": {"down_blocks.2.downsamplers.0.conv.weight": "input_blocks.9.0.op.weight"},
    "XL": {
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_v.weight": (
            "input_blocks.8.1.transformer_blocks.9.attn2.to_v.weight"
        ),
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "add_embedding.linear_2.weight": "label_emb.0.2.weight",
        "up_blocks.2.resnets.2.conv_shortcut.weight": "output_blocks.8.0.skip_connection.weight",
    },
}


@pytest.mark.parametrize("version", sorted(REAL_UNETS))
def test_every_name_of_the_real_unets_is_the_original_one(version: str) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**REAL_UNETS[version])
    attended = frozenset(index for index, block in enumerate(unet.up_blocks) if hasattr(block, "attentions"))
    stored = {stored_unet_name(name, 2, attended): name for name in unet.state_dict()}
    assert len(stored) == len(unet.state_dict())
    named = {f"{UNET}{place}": torch.empty(0) for place in stored}
    back = convert_ldm_unet_checkpoint(named, dict(unet.config))
    assert {own: named[f"{UNET}{place}"] is back[own] for place, own in stored.items()} == dict.fromkeys(back, True)
    assert blocks_per_level(named) == 2
    inside = {place: own for place, own in stored.items() if ".transformer_blocks." in own}
    assert {place: own_attention_name(place, 2) for place in stored if own_attention_name(place, 2)} == inside
    assert KNOWN_NAMES[version].items() <= {own: place for place, own in stored.items()}.items()


def test_a_second_averaged_copy_is_never_left_in(tmp_path: Path) -> None:
    save("stable-diffusion-1", tmp_path / "base")
    file = as_single_file(tmp_path / "base")
    rewrite(file, lambda held: {**held, "model_ema.decay": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"1 tensors model_ema\.\*, a second copy"):
        scapre.inspect_checkpoint(file)


def _drop(*parts: str) -> Callable[[dict], dict]:
    return lambda held: {name: tensor for name, tensor in held.items() if not any(part in name for part in parts)}


def _halve(part: str) -> Callable[[dict], dict]:
    return lambda held: {name: tensor[::2].clone() if part in name else tensor for name, tensor in held.items()}


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_drop("cond_stage_model"), UnsupportedArchitectureError, "give another family as a folder"),
        (_drop(UNET), UnsupportedArchitectureError, "expected model.diffusion_model"),
        (_drop("attn2"), CheckpointError, "expected projections"),
        (_drop(".0.op."), CheckpointError, "expected a down-sampling"),
        (_drop("layers.1.mlp.fc2.bias"), CheckpointError, "text_encoder lacks 1 weights"),
        (_drop("layers.0.mlp.fc1.weight"), CheckpointError, "text_encoder lacks .*fc1"),
        (_halve("layers.1.mlp.fc2.weight"), CheckpointError, "could not build text_encoder"),
    ],
)
def test_single_files_that_cannot_be_read_are_refused(damage, error: type, message: str, tmp_path: Path) -> None:
    save("stable-diffusion-1", tmp_path / "base")
    file = as_single_file(tmp_path / "base")
    rewrite(file, damage)
    with pytest.raises(error, match=message):
        scapre.base_digest(file)


def test_heads_a_file_does_not_tell_are_known_or_asked_for(tmp_path: Path) -> None:
    save("stable-diffusion-1", tmp_path / "base")
    file = as_single_file(tmp_path / "base")
    save_file(load_file(file), file)  # as a file made elsewhere
    with pytest.raises(UnsupportedArchitectureError, match="768, 1024, 1280, found 64, whose attention heads"):
        scapre.base_digest(file)
    save_file(load_file(file), file, {"scapre": "[]"})
    with pytest.raises(CheckpointError, match="expected text encoders in its header"):
        scapre.base_digest(file)
    assert {width: width // 64 for width in (768, 1024, 1280)} == single_file.KNOWN_HEADS


def test_a_pickle_and_a_strange_tokenizer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pickle model\.ckpt"):
        scapre.inspect_checkpoint(tmp_path / "model.ckpt")
    save("stable-diffusion-1", tmp_path / "base")
    file = as_single_file(tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"expected a file among tokenizer\.json"):
        unlearn(SingleFile(file, tmp_path / "nothing"))
    larger = clip_tokenizer()
    larger.add_tokens(["quagga"])
    larger.save_pretrained(tmp_path / "larger")
    with pytest.raises(CheckpointError, match=rf"expected a tokenizer of {len(larger) - 1} tokens for text_encoder"):
        unlearn(SingleFile(file, tmp_path / "larger"))


def test_families_without_a_single_file_layout_say_so(tmp_path: Path) -> None:
    save("pixart-sigma", tmp_path / "base")
    edit = unlearn(tmp_path / "base")
    with pytest.raises(UnsupportedArchitectureError, match="found PixArtSigmaPipeline; export a folder"):
        scapre.export_single_file(edit, tmp_path / "base", tmp_path / "out.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("any_family", sorted(BUILDERS))
def test_a_lora_of_enough_rank_is_the_edit(any_family: str, tmp_path: Path) -> None:
    pipeline = save(any_family, tmp_path / "base")
    edit = unlearn(tmp_path / "base", rank=3)
    written = scapre.export_lora(edit, tmp_path / "base", tmp_path / "lora.safetensors", rank=3)
    assert written.faithful_rank <= 3  # one concept at rank 3 changes every row within three directions
    assert written.error < 1e-5
    held = load_file(written.path)
    products = {}
    for name in edit.changes:
        component, _, module = name.removesuffix(".weight").partition(".")
        if component == "unet":
            stem = f"lora_unet_{module.replace('.', '_')}"
            assert float(held[f"{stem}.alpha"]) == len(held[f"{stem}.lora_down.weight"]) == 3
            products[name] = held[f"{stem}.lora_up.weight"] @ held[f"{stem}.lora_down.weight"]
        else:
            products[name] = held[f"{component}.{module}.lora_B.weight"] @ held[f"{component}.{module}.lora_A.weight"]
        base = getattr(pipeline, component).get_parameter(f"{module}.weight").detach()
        edited = edit.flip(name, base)
        assert (base + products[name] - edited).norm() < 1e-4 * (edited - base).norm()
    assert len(held) == len(edit.changes) * (3 if any(name.startswith("unet.") for name in edit.changes) else 2)


@pytest.mark.parametrize("any_family", [family for family in sorted(BUILDERS) if family != "pixart-sigma"])
def test_diffusers_finds_the_edited_modules_in_a_lora(any_family: str, tmp_path: Path) -> None:
    pipeline = save(any_family, tmp_path / "base")
    edit = unlearn(tmp_path / "base")
    written = scapre.export_lora(edit, tmp_path / "base", tmp_path / "lora.safetensors", rank=1)
    read = type(pipeline).lora_state_dict(written.path)
    state = read[0] if isinstance(read, tuple) else read
    modules = {name.replace(".processor", "").rpartition(".weight")[0] for name in state}
    for ending in ("_lora.down", "_lora.up", ".lora_A", ".lora_B"):
        modules = {name.removesuffix(ending) for name in modules}
    assert modules == {name.removesuffix(".weight") for name in edit.changes}


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))
def test_error_of_a_lora_is_measured_and_the_least_possible(seed: int, rank: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    change = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    rank = min(rank, rows, columns)
    found = approximate(change, rank=rank)
    left = float((change - found.up.double() @ found.down.double()).square().sum())
    assert found.squared_error == left
    sigma = torch.linalg.svdvals(change)
    assert left == pytest.approx(float(sigma[rank:].square().sum()), abs=1e-10 * found.squared_change)  # Eckart–Young
    assert float(found.squared_tails[rank]) == pytest.approx(left, abs=1e-10 * found.squared_change)
    worse = approximate(change, rank=max(rank - 1, 1)).squared_error
    assert worse >= left - 1e-10 * found.squared_change


def test_report_of_a_lora_names_every_projection_and_the_rank_that_would_do(tmp_path: Path) -> None:
    save("stable-diffusion-1", tmp_path / "base")
    edit = scapre.unlearn(tmp_path / "base", [Concept("cat"), Concept("horse")], ["dog"], vocabulary=0, rank=3)
    low, high = (
        scapre.export_lora(edit, tmp_path / "base", tmp_path / f"{rank}.safetensors", rank=rank) for rank in (1, 6)
    )
    assert set(low.errors) == set(edit.changes)
    assert all(low.errors[name] > high.errors[name] for name in low.errors)
    assert 0.05 < low.error < 1
    assert high.error <= lora.FAITHFUL
    assert 1 < low.faithful_rank == high.faithful_rank <= 6


@pytest.mark.parametrize("rank", [0, -1, 33, 2.5, "2", True])
def test_impossible_ranks_are_refused(checkpoint: Path, tmp_path: Path, rank: int) -> None:
    edit = unlearn(checkpoint)
    with pytest.raises(DialError, match=r"expected a rank of at least 1 and at most 32, found"):
        scapre.export_lora(edit, checkpoint, tmp_path / "lora.safetensors", rank=rank)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_an_edit_that_changes_nothing_is_an_empty_lora(checkpoint: Path, tmp_path: Path) -> None:
    written = scapre.export_lora(
        unlearn(checkpoint, erasure_strength=0), checkpoint, tmp_path / "lora.safetensors", rank=1
    )
    assert (written.errors, written.error, written.faithful_rank) == ({}, 0.0, 0)


def _as_lora(edit: Edit, checkpoint: Path, out: Path, **options) -> Path:
    return scapre.export_lora(edit, checkpoint, out, rank=2, **options).path


EXPORTS = {"folder": scapre.merge, "single-file": scapre.export_single_file, "lora": _as_lora}
PLACES = {"folder": "out", "single-file": "out.safetensors", "lora": "out.safetensors"}


@pytest.mark.parametrize("kind", sorted(EXPORTS))
def test_nothing_is_overwritten_unasked(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    edit, export, out = unlearn(checkpoint), EXPORTS[kind], tmp_path / PLACES[kind]
    export(edit, checkpoint, out)
    with pytest.raises(CheckpointError, match="there already"):
        export(edit, checkpoint, out)
    changed = out / "model_index.json" if out.is_dir() else out
    changed.unlink()
    changed.write_bytes(b"old")
    assert export(edit, checkpoint, out, overwrite=True) == out
    assert changed.read_bytes() != b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", PLACES[kind]]
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        export(edit, checkpoint, checkpoint / "inside")
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        export(edit, checkpoint, tmp_path, overwrite=True)
    assert scapre.base_digest(checkpoint) == edit.base_digest


@pytest.mark.parametrize("kind", sorted(EXPORTS))
def test_what_was_there_survives_a_full_disk(checkpoint: Path, tmp_path: Path, kind: str, monkeypatch) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    edit, export, out = unlearn(checkpoint), EXPORTS[kind], tmp_path / PLACES[kind]
    export(edit, checkpoint, out)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr("scapre.writing.flush", full)
    monkeypatch.setattr("scapre.exports.folder.flush", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*free space"):
        export(edit, checkpoint, out, overwrite=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@contextmanager
def no_room_for_more_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", [*sorted(EXPORTS), "edit"])
def test_what_cannot_be_written_in_full_is_an_error_and_no_file(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    edit, out = unlearn(checkpoint), tmp_path / PLACES.get(kind, "edit.safetensors")
    with no_room_for_more_than(1024), pytest.raises(CheckpointError, match=r"could not write .*File too large.*free"):
        edit.save(out) if kind == "edit" else EXPORTS[kind](edit, checkpoint, out)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("kind", sorted(EXPORTS))
def test_exports_of_another_base_are_refused_with_both_digests(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    edit = unlearn(checkpoint)
    build("stable-diffusion-1", dtype=torch.float32, seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(BaseMismatchError) as refusal:
        EXPORTS[kind](edit, tmp_path / "other", tmp_path / PLACES[kind])
    assert edit.base_digest in str(refusal.value)
    assert scapre.base_digest(tmp_path / "other") in str(refusal.value)
    assert not (tmp_path / PLACES[kind]).exists()


def test_places_of_the_wrong_kind_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    edit = unlearn(checkpoint)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="place for a file, found the folder"):
        scapre.export_single_file(edit, checkpoint, tmp_path / "folder.safetensors", overwrite=True)
    for export in (scapre.export_single_file, _as_lora):
        with pytest.raises(CheckpointError, match=r"ends in \.safetensors, found model\.ckpt"):
            export(edit, checkpoint, tmp_path / "model.ckpt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work", encoding="utf-8")
    for mine in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(CheckpointError, match="holds something else"):
            scapre.merge(edit, checkpoint, mine, overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text(encoding="utf-8") == "years of work"
    file = scapre.export_single_file(edit, checkpoint, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="export it as a single file"):
        scapre.merge(edit, file, tmp_path / "out")


@pytest.mark.parametrize("kind", sorted(EXPORTS))
def test_no_way_round_leads_into_the_base(checkpoint: Path, tmp_path: Path, kind: str, monkeypatch) -> None:
    edit = unlearn(checkpoint)
    (tmp_path / "work").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "work")
    before = {p: p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()}
    for way in ("../base", "../base/inside", str(tmp_path / "alias" / "base"), str(tmp_path / "alias" / "base" / "x")):
        with pytest.raises(CheckpointError, match="outside of the checkpoint"):
            EXPORTS[kind](edit, checkpoint, way, overwrite=True)
    assert {p: p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()} == before
    EXPORTS[kind](edit, checkpoint, f"../{PLACES[kind]}")  # the control


def test_exporters_take_what_unlearn_takes(tmp_path: Path) -> None:
    save("stable-diffusion-1", tmp_path / "base")
    file = as_single_file(tmp_path / "base")
    given = SingleFile(file, tmp_path / "base" / "tokenizer")
    edit = unlearn(given)
    out = scapre.export_single_file(edit, given, tmp_path / "out.safetensors")
    assert scapre.base_digest(out) == edit.edited_digest
    assert scapre.export_lora(edit, given, tmp_path / "lora.safetensors", rank=4).path.exists()
    with pytest.raises(CheckpointError, match="expected a folder to merge"):
        scapre.merge(edit, given, tmp_path / "merged")


def test_a_unet_whose_levels_differ_in_depth_has_no_single_file(tmp_path: Path) -> None:
    save("stable-diffusion-1", tmp_path / "base")
    edit, config = unlearn(tmp_path / "base"), tmp_path / "base" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "layers_per_block": [1, 1]}))
    with pytest.raises(UnsupportedArchitectureError, match="one number as layers_per_block"):
        scapre.export_single_file(edit, tmp_path / "base", tmp_path / "out.safetensors")
