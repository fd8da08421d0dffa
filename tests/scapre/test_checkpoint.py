"""Checkpoints on disk: looked at first, read in part, merged without side effects, never unpickled."""

import errno
import json
import os
import pickle
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny_pipelines import BUILDERS, build

import scapre
from scapre import BaseMismatchError, CheckpointError, Concept, Edit, UnsupportedArchitectureError, writing
from scapre.architectures import find_architecture
from scapre.checkpoint import folder as reading
from scapre.checkpoint.tensor_files import is_pickle, read_header
from scapre.exports import folder as folders

UNET = "unet/diffusion_pytorch_model.safetensors"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def edit(checkpoint: Path) -> Edit:
    return scapre.unlearn(checkpoint, [Concept("cat")], ["dog"], vocabulary=0)


def load(folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)


@pytest.fixture(params=[pytest.param(False, id="whole"), pytest.param(True, id="sharded")])
def is_sharded(request) -> bool:
    return request.param


@pytest.fixture(params=tuple(BUILDERS))
def family_checkpoint(request, tmp_path: Path, is_sharded: bool) -> Path:
    """A folder of each architecture, its weights in one file or several for each part."""
    folder = tmp_path / "family"
    size = {"max_shard_size": "60KB"} if is_sharded else {}
    build(request.param, dtype=torch.float32).save_pretrained(folder, **size)
    return folder


def test_every_architecture_is_read_in_part_and_merged(
    family_checkpoint: Path, is_sharded: bool, tmp_path, monkeypatch
):
    pipeline = DiffusionPipeline.from_pretrained(family_checkpoint, local_files_only=True)
    adapter = find_architecture(type(pipeline).__name__)
    needed = {*adapter.text_encoders, *(name.replace("text_encoder", "tokenizer") for name in adapter.text_encoders)}
    for part in (p for p in family_checkpoint.iterdir() if p.is_dir() and p.name not in {*needed, adapter.denoiser}):
        for file in part.rglob("*.safetensors"):
            file.write_bytes(b"never read")
    seen: list[str] = []
    original = reading.read_tensors

    def recorded(file: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
        seen.extend(names)
        return original(file, names)

    monkeypatch.setattr(reading, "read_tensors", recorded)
    edit = scapre.unlearn(family_checkpoint, [Concept("cat", "unsafe")], ["dog"], vocabulary=0)
    assert seen
    assert set(seen) == {
        name for name, _ in getattr(pipeline, adapter.denoiser).named_parameters() if adapter.is_read(name)
    }
    assert edit.digest == scapre.unlearn(pipeline, [Concept("cat", "unsafe")], ["dog"], vocabulary=0).digest

    before = contents(family_checkpoint)
    out = scapre.merge(edit, family_checkpoint, tmp_path / "out")
    after = contents(out)
    rewritten = {name for name in before if before[name] != after[name]}
    info = scapre.inspect_checkpoint(family_checkpoint)
    holding = {str(info.files[name].relative_to(family_checkpoint)) for name in edit.changes}
    assert rewritten == holding
    assert is_sharded == (len(list((out / adapter.denoiser).glob("*.safetensors"))) > 1)
    shared = {name for name in before if (out / name).samefile(family_checkpoint / name)}
    assert shared == {name for name in before if name.endswith(".safetensors")} - set(rewritten)
    assert scapre.base_digest(out) == edit.edited_digest
    with pytest.raises(BaseMismatchError) as refusal:
        scapre.merge(edit, out, tmp_path / "again")
    assert edit.base_digest in str(refusal.value)
    assert edit.edited_digest in str(refusal.value)
    assert not (tmp_path / "again").exists()


def grow(file: Path, extra_bytes: int) -> None:
    """Gives a safetensors file one more tensor, of zeros that take no room on the disk."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), len(content) - 8 - length
    header["unread"] = {"dtype": "U8", "shape": [extra_bytes], "data_offsets": [data, data + extra_bytes]}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    os.truncate(file, file.stat().st_size + extra_bytes)


def peak_growth(run: Callable[[], object]) -> int:
    """Returns by how many bytes resident memory rises at most while `run` runs."""

    def resident(key: str) -> int:
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return 1024 * int(found[1]) if found else 0

    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value so far
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_what_is_not_read(checkpoint: Path, tmp_path: Path) -> None:
    extra, file = 256 << 20, checkpoint / UNET
    grow(file, extra)

    def unlearn_and_merge() -> None:
        edit = scapre.unlearn(checkpoint, [Concept("cat")], ["dog"], vocabulary=0)
        scapre.merge(edit, checkpoint, tmp_path / "out")
        scapre.export_lora(edit, checkpoint, tmp_path / "lora.safetensors", rank=1)

    assert peak_growth(unlearn_and_merge) < extra // 4
    assert (tmp_path / "out" / UNET).stat().st_size > extra
    assert peak_growth(lambda: load_file(file)["unread"].clone()) > extra // 2  # the control: this is how it would show


def _archive(file: Path, member: str) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(member, b"content")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_told_by_its_content_whatever_it_calls_itself(checkpoint: Path, protocol: int) -> None:
    (checkpoint / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps({"a": [1]}, protocol))
    with pytest.raises(CheckpointError, match=r"pickle vae/diffusion_pytorch_model\.safetensors"):
        scapre.inspect_checkpoint(checkpoint)


def test_an_archive_that_holds_a_pickle_is_one_and_others_are_not(checkpoint: Path) -> None:
    _archive(checkpoint / "samples.zip", "picture.png")
    scapre.inspect_checkpoint(checkpoint)
    _archive(checkpoint / "weights.dat", "archive/data.pkl")
    with pytest.raises(CheckpointError, match=r"pickle weights\.dat"):
        scapre.inspect_checkpoint(checkpoint)


def test_a_pickle_that_begins_as_safetensors_do_is_one(checkpoint: Path) -> None:
    start = b"\x80\x02X" + struct.pack("<I", 2) + b"\0{" + b"0"  # a text, let go
    crafted = start + pickle.dumps({}, 2)[2:]
    assert pickle.loads(crafted) == {}  # the control
    assert crafted[5:9] == b"\0\0\0{"
    (checkpoint / "weights.dat").write_bytes(crafted)
    with pytest.raises(CheckpointError, match=r"pickle weights\.dat"):
        scapre.inspect_checkpoint(checkpoint)


def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    header = json.dumps({"__metadata__": {"note": "x"}}).ljust(0x0480).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    assert file.read_bytes()[:2] == pickle.dumps(0, 4)[:2]
    assert not is_pickle(file)
    assert read_header(file) == {}


def test_sd3_without_t5_is_read_from_its_folder(tmp_path: Path) -> None:
    pipeline = build("stable-diffusion-3", dtype=torch.float32)
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipeline.save_pretrained(tmp_path / "base")
    assert scapre.base_digest(tmp_path / "base") == scapre.base_digest(pipeline)
    assert len(scapre.inspect_checkpoint(tmp_path / "base").not_covered) == 1


def test_folder_and_loaded_pipeline_have_one_digest_and_one_edit(checkpoint: Path, edit: Edit) -> None:
    pipeline = load(checkpoint)
    assert scapre.base_digest(checkpoint) == scapre.base_digest(pipeline) == edit.base_digest
    assert scapre.unlearn(pipeline, [Concept("cat")], ["dog"], vocabulary=0).digest == edit.digest


def test_info_says_what_the_checkpoint_is(checkpoint: Path) -> None:
    info = scapre.inspect_checkpoint(checkpoint)
    assert (info.pipeline_class, info.architecture) == ("StableDiffusionPipeline", "stable-diffusion")
    assert (info.text_width, info.dtype, info.not_covered) == (32, "F32", ())
    assert info.row_count == sum(shape[0] for shape in info.projections.values())
    assert all(".attn2.to_" in name and shape[1] == 32 for name, shape in info.projections.items())


def test_merge_changes_edited_tensors_only(checkpoint: Path, edit: Edit, tmp_path: Path) -> None:
    before = contents(checkpoint)
    out = scapre.merge(edit, checkpoint, tmp_path / "out")
    after = contents(out)
    assert contents(checkpoint) == before
    assert set(after) == set(before)
    assert [name for name in before if before[name] != after[name]] == [UNET]
    length = 8 + int.from_bytes(before[UNET][:8], "little")
    assert after[UNET][:length] == before[UNET][:length]
    old, new = load_file(checkpoint / UNET), load_file(out / UNET)
    changed = {f"unet.{name}" for name in old if not torch.equal(old[name], new[name])}
    assert changed == set(edit.changes)


def test_merged_folder_loads_with_the_same_weights_as_apply(checkpoint: Path, edit: Edit, tmp_path: Path) -> None:
    out = scapre.merge(edit, checkpoint, tmp_path / "out")
    applied, merged = load(checkpoint), load(out)
    edit.apply(applied)
    for name, tensor in applied.unet.state_dict().items():
        assert torch.equal(tensor, merged.unet.state_dict()[name])
    assert scapre.base_digest(out) == edit.edited_digest
    edit.revert(merged)
    assert scapre.base_digest(merged) == edit.base_digest


def test_identity_edit_merges_into_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    edit = scapre.unlearn(checkpoint, [Concept("cat")], vocabulary=0, erasure_strength=0)
    assert contents(scapre.merge(edit, checkpoint, tmp_path / "out")) == contents(checkpoint)


def test_sharded_weights_and_file_metadata_survive(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / UNET)
    names, folder = sorted(tensors), checkpoint / "unet"
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in halves.items():
        save_file({name: tensors[name] for name in held}, folder / file, {"format": "pt", "note": "kept"})
    (checkpoint / UNET).unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, held in halves.items() for name in held}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    edit = scapre.unlearn(checkpoint, [Concept("cat")], vocabulary=0)
    out = scapre.merge(edit, checkpoint, tmp_path / "out")
    assert scapre.base_digest(out) == edit.edited_digest
    assert b'"note":"kept"' in (out / "unet" / "a.safetensors").read_bytes()[:400]


def test_shards_that_the_index_forgets_are_missed(checkpoint: Path) -> None:
    tensors, index = (
        load_file(checkpoint / UNET),
        checkpoint / "unet" / "diffusion_pytorch_model.safetensors.index.json",
    )
    names = sorted(tensors)
    (checkpoint / UNET).unlink()
    placed = {}
    for place, held in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-{place:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in held}, index.parent / file)
        placed |= dict.fromkeys(held, file)
    index.write_text(json.dumps({"weight_map": placed}))
    whole = scapre.inspect_checkpoint(checkpoint)  # the control
    index.write_text(json.dumps({"weight_map": {name: placed[name] for name in names[::2]}}))
    with pytest.raises(CheckpointError, match="expected 2 files of weights, as their names say, found 1; restore it"):
        scapre.inspect_checkpoint(checkpoint)
    assert len(whole.projections) > 1


def test_text_encoders_of_older_releases_have_the_same_digest(checkpoint: Path) -> None:
    digest, file = scapre.base_digest(checkpoint), checkpoint / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    assert scapre.base_digest(checkpoint) == digest


def test_merge_refuses_to_overwrite_and_other_bases(
    checkpoint: Path, edit: Edit, tmp_path: Path, make_pipeline
) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(CheckpointError, match="there already"):
        scapre.merge(edit, checkpoint, tmp_path / "taken")
    with pytest.raises(CheckpointError, match="outside"):
        scapre.merge(edit, checkpoint, checkpoint / "out")
    make_pipeline(seed=1, dtype=torch.float32).save_pretrained(tmp_path / "other")
    with pytest.raises(BaseMismatchError, match="compute the edit for this one"):
        scapre.merge(edit, tmp_path / "other", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "other", "taken"]


def test_a_full_disk_leaves_nothing_behind(checkpoint: Path, edit: Edit, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "copy_through", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*free space"):
        scapre.merge(edit, checkpoint, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_files_are_copied_where_they_cannot_be_linked(
    checkpoint: Path, edit: Edit, tmp_path: Path, monkeypatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(folders.os, "link", no_links)
    out = scapre.merge(edit, checkpoint, tmp_path / "out")
    assert scapre.base_digest(out) == edit.edited_digest
    assert not (out / "vae" / "diffusion_pytorch_model.safetensors").samefile(
        checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    )


def _edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _drop_text_weight(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("final_layer_norm.bias")
    save_file(tensors, file, {"format": "pt"})


def _drop_keys(folder: Path) -> None:
    _without(folder / UNET, next(name for name in sorted(load_file(folder / UNET)) if "attn2.to_k" in name))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda f: (f / "unet" / "x.bin").touch(),
            CheckpointError,
            "pickle unet/x.bin.*convert the weights to safetensors",
        ),
        (lambda f: (f / "x.ckpt").touch(), CheckpointError, "pickle"),
        (lambda f: (f / "vae" / "x.PT").touch(), CheckpointError, "pickle"),
        (lambda f: (f / "x.pth").touch(), CheckpointError, "pickle"),
        (lambda f: (f / "x.pkl").touch(), CheckpointError, "pickle"),
        (lambda f: (f / "model_index.json").unlink(), CheckpointError, "model_index.json"),
        (lambda f: (f / "model_index.json").write_text("{"), CheckpointError, "expected JSON"),
        (lambda f: shutil.rmtree(f / "text_encoder"), CheckpointError, "text_encoder/config.json"),
        (
            lambda f: (f / "text_encoder" / "model.safetensors").unlink(),
            CheckpointError,
            "text_encoder/model.safetensors",
        ),
        (_drop_text_weight, CheckpointError, "lacks 1 weights, the first 'final_layer_norm.bias'"),
        (lambda f: shutil.rmtree(f / "tokenizer"), CheckpointError, "tokenizer"),
        (
            lambda f: _edit_json(f / "model_index.json", tokenizer=["transformers", "CLIPTextModel"]),
            UnsupportedArchitectureError,
            "expected a tokenizer class for tokenizer, found CLIPTextModel",
        ),
        (
            lambda f: _edit_json(f / "model_index.json", text_encoder=[None, None]),
            UnsupportedArchitectureError,
            "expected CLIPTextModel as text_encoder, found none",
        ),
        (lambda f: (f / UNET).unlink(), CheckpointError, UNET),
        (lambda f: (f / UNET).write_bytes(b"\x10"), CheckpointError, "readable safetensors"),
        (lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:-9]), CheckpointError, "readable safetensors"),
        (
            lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": []}'),
            CheckpointError,
            "expected a weight_map of names and files, found ",
        ),
        (
            lambda f: _edit_json(f / "text_encoder" / "config.json", num_attention_heads=0),
            CheckpointError,
            "could not read the text encoder: ZeroDivisionError",
        ),
        (
            lambda f: _edit_json(f / "text_encoder" / "config.json", hidden_act="nonsense"),
            CheckpointError,
            "could not read the text encoder: KeyError",
        ),
        (
            lambda f: (f / "tokenizer" / "tokenizer_config.json").write_text("[]"),
            CheckpointError,
            "could not read the tokenizer",
        ),
        (
            lambda f: _edit_json(f / "tokenizer" / "tokenizer_config.json", model_max_length="abc"),
            CheckpointError,
            "a number as model_max_length, found .*'abc'",
        ),
        (_drop_keys, UnsupportedArchitectureError, "every cross-attention, found no 'unet.down_blocks.*to_k.weight'"),
        (
            lambda f: _edit_json(f / "model_index.json", _class_name="KandinskyPipeline"),
            UnsupportedArchitectureError,
            "found KandinskyPipeline",
        ),
        (
            lambda f: _edit_json(f / "model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
            UnsupportedArchitectureError,
            "found T5EncoderModel",
        ),
        (
            lambda f: _edit_json(f / "unet" / "config.json", _class_name="UNet3DConditionModel"),
            UnsupportedArchitectureError,
            "found UNet3DConditionModel",
        ),
        (
            lambda f: _edit_json(f / "unet" / "config.json", encoder_hid_dim=8),
            UnsupportedArchitectureError,
            "encoder_hid_dim",
        ),
    ],
)
def test_what_cannot_be_handled_is_refused_and_nothing_is_written(
    checkpoint: Path, edit: Edit, tmp_path: Path, damage, error: type, message: str
) -> None:
    damage(checkpoint)
    with pytest.raises(error, match=message):
        scapre.unlearn(checkpoint, [Concept("cat")], vocabulary=0)
    with pytest.raises(error, match=message):
        scapre.merge(edit, checkpoint, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def _without(file: Path, name: str) -> None:
    tensors = load_file(file)
    tensors.pop(name)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("family", ["pixart-sigma", "sana"])
def test_a_folder_that_lacks_what_text_passes_through_is_refused_by_name(tmp_path: Path, family: str) -> None:
    build(family, dtype=torch.float32).save_pretrained(tmp_path)
    weights, config = (
        tmp_path / "transformer" / name for name in ("diffusion_pytorch_model.safetensors", "config.json")
    )
    assert scapre.base_digest(tmp_path)  # the control
    kept = weights.read_bytes()
    _without(weights, "caption_projection.linear_2.bias")
    with pytest.raises(
        CheckpointError, match=r"transformer\.caption_projection\.linear_2\.bias of shape .*, found none"
    ):
        scapre.base_digest(tmp_path)
    weights.write_bytes(kept)
    _edit_json(config, attention_head_dim=None)
    with pytest.raises(CheckpointError, match="whole numbers num_attention_heads and attention_head_dim"):
        scapre.base_digest(tmp_path)


def test_a_path_without_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a folder in diffusers' layout or a safetensors file"):
        scapre.inspect_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("stray", ["unet/diffusion_pytorch_model.fp16.safetensors", "sd_xl.safetensors"])
def test_merge_passes_on_no_unedited_copy(checkpoint: Path, edit: Edit, tmp_path: Path, stray: str) -> None:
    shutil.copyfile(checkpoint / UNET, checkpoint / stray)
    with pytest.raises(CheckpointError, match=rf"found {re.escape(stray)} as well \(1 in all\)"):
        scapre.merge(edit, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (checkpoint / stray).unlink()
    scapre.merge(edit, checkpoint, tmp_path / "out")  # the control


def test_folders_behind_links_are_merged_and_searched_for_pickles(checkpoint: Path, edit: Edit, tmp_path: Path) -> None:
    plain = contents(scapre.merge(edit, checkpoint, tmp_path / "plain"))
    for component in ("unet", "tokenizer"):
        (checkpoint / component).rename(tmp_path / component)
        (checkpoint / component).symlink_to(tmp_path / component)
    assert contents(scapre.merge(edit, checkpoint, tmp_path / "linked")) == plain
    (tmp_path / "tokenizer" / "evil.bin").touch()
    with pytest.raises(CheckpointError, match=r"pickle tokenizer/evil\.bin"):
        scapre.unlearn(checkpoint, [Concept("cat")], vocabulary=0)
    (tmp_path / "tokenizer" / "evil.bin").unlink()
    (checkpoint / "vae" / "again").symlink_to(checkpoint)
    with pytest.raises(CheckpointError, match=r"without loops, found the link .*again"):
        scapre.unlearn(checkpoint, [Concept("cat")], vocabulary=0)


def test_variants_are_named_with_the_way_to_read_them(make_pipeline, tmp_path: Path) -> None:
    make_pipeline(dtype=torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    said = r"expected the weights text_encoder/model.safetensors, found model.fp16.safetensors, .*variant='fp16'"
    with pytest.raises(CheckpointError, match=said):
        scapre.inspect_checkpoint(tmp_path / "half")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "half", variant="fp16", dtype=torch.float16)
    loaded.save_pretrained(tmp_path / "whole")  # as the message says
    assert scapre.base_digest(loaded) == scapre.base_digest(tmp_path / "whole")
