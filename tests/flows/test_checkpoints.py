"""Any checkpoint: the same edit in five forms draws the same, and what does not fit is refused before a picture."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import scapre
from flows.checkpoints import open_checkpoint
from flows.errors import BadRequestError
from flows.integrity import check_integrity
from flows.pipelines import check_alike, load_pipeline
from infra.digests import sha256_file
from infra.manifests import Manifest

MODEL = Path(__file__).parents[2] / "infra" / "reference" / "model"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One edit in every form."""
    folder = tmp_path_factory.mktemp("forms")
    concepts = [scapre.Concept("tiger"), scapre.Concept("violin")]
    edit = scapre.unlearn(MODEL, concepts, retain=["lion", "guitar"], vocabulary=0, rank=3)
    lora = folder / "lora.safetensors"
    scapre.export_lora(edit, MODEL, lora, rank=8)
    (folder / "adapter").mkdir()
    shutil.copy(lora, folder / "adapter" / "pytorch_lora_weights.safetensors")
    return {
        "edit": edit.save(folder / "edit.safetensors"),
        "folder": scapre.merge(edit, MODEL, folder / "merged"),
        "single file": scapre.export_single_file(edit, MODEL, folder / "single.safetensors"),
        "LoRA": lora,
        "LoRA in a folder": folder / "adapter",
    }


@pytest.fixture
def copied(forms: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(forms["folder"], tmp_path / "copied"))


def draw(folder: Path) -> np.ndarray:
    pipeline = load_pipeline(folder, "cpu")
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator("cpu").manual_seed(3)
    return pipeline("a tiger", generator=noise, num_inference_steps=2, output_type="np").images[0]


def test_every_form_of_an_edit_draws_the_same_picture_and_not_the_base_s(forms, tmp_path) -> None:
    merged, base = draw(forms["folder"]), draw(MODEL)
    assert np.abs(merged - base).max() > 0.05
    for name, path in forms.items():
        checkpoint = open_checkpoint(path, base=MODEL)
        assert checkpoint.kind == name.removesuffix(" in a folder")
        folder = checkpoint.materialise(tmp_path)
        check_alike(MODEL, folder)
        assert np.abs(draw(folder) - merged).max() < (1e-3 if "LoRA" in name else 1e-6), name


def test_a_digest_is_of_the_bytes_given(forms) -> None:
    assert open_checkpoint(forms["folder"]).digest == Manifest.of_directory(forms["folder"]).digest
    for name in ("edit", "single file", "LoRA"):
        checkpoint = open_checkpoint(forms[name], base=MODEL)
        assert checkpoint.describe() == {
            "kind": name,
            "digest": sha256_file(forms[name]),
            "base_digest": Manifest.of_directory(MODEL).digest,
        }


def test_what_was_put_together_is_found_again_and_made_anew_only_when_damaged(forms, tmp_path) -> None:
    checkpoint = open_checkpoint(forms["edit"], base=MODEL)
    folder = checkpoint.materialise(tmp_path)
    whole, before = Manifest.of_directory(folder).digest, (folder / UNET).stat().st_mtime_ns
    assert checkpoint.materialise(tmp_path) == folder
    assert (folder / UNET).stat().st_mtime_ns == before
    content = bytearray((folder / UNET).read_bytes())
    content[-1] ^= 1
    (folder / UNET).write_bytes(content)
    assert Manifest.of_directory(checkpoint.materialise(tmp_path)).digest == whole


def test_an_edit_attests_its_own_bytes(forms, tmp_path) -> None:
    checkpoint = open_checkpoint(forms["edit"], base=MODEL)
    attested = checkpoint.attest(checkpoint.materialise(tmp_path))
    assert attested == check_integrity(MODEL, forms["folder"], scapre.Edit.load(forms["edit"]))
    assert attested.is_intact
    assert "the base's with the edit on" in attested.reason


def test_a_folder_that_changed_after_it_was_named_is_refused(copied, tmp_path) -> None:
    checkpoint = open_checkpoint(copied)
    (copied / "stray.txt").write_text("x")
    with pytest.raises(scapre.CheckpointError, match="changed since it was named"):
        checkpoint.materialise(tmp_path)


@pytest.mark.parametrize("name", ["edit", "single file", "LoRA"])
def test_what_is_no_whole_model_needs_a_base_that_is_a_folder(forms, name) -> None:
    for base in (None, forms["single file"]):
        with pytest.raises(BadRequestError, match="name the folder of the base"):
            open_checkpoint(forms[name], base=base)


@pytest.mark.parametrize("name", ["edit", "single file", "LoRA"])
def test_a_file_cut_short_is_refused_when_opened(forms, tmp_path, name) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(forms[name].read_bytes()[:-100])
    with pytest.raises(scapre.CheckpointError, match="expected a readable safetensors file"):
        open_checkpoint(cut, base=MODEL)


def test_pickles_are_refused_whatever_they_call_themselves(copied, tmp_path) -> None:
    disguised = tmp_path / "model.safetensors"
    torch.save({"weight": torch.zeros(1)}, disguised)
    for path in (disguised, copied):
        (copied / "vae" / "extra.bin").write_bytes(b"x")
        with pytest.raises(scapre.CheckpointError, match="pickle"):
            open_checkpoint(path, base=MODEL)


def remove(component: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / component)


def cut(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def rewrite(change: Callable[[dict[str, torch.Tensor]], None], file: str = UNET) -> Callable[[Path], None]:
    def breaking(folder: Path) -> None:
        held = load_file(folder / file)
        change(held)
        save_file(held, folder / f"{file}.new", metadata={"format": "pt"})
        (folder / f"{file}.new").replace(folder / file)

    return breaking


def halve(held: dict[str, torch.Tensor]) -> None:
    held |= {name: tensor.half() for name, tensor in held.items()}


def round_off(held: dict[str, torch.Tensor]) -> None:
    held |= {name: tensor.to(torch.int8) for name, tensor in held.items()}


def spoil(held: dict[str, torch.Tensor]) -> None:
    held["conv_in.weight"][0] = float("nan")


def foreign(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["my_code", "MyUNet"]
    (folder / "model_index.json").write_text(json.dumps(index))


BROKEN = {
    "no VAE": (remove("vae"), "component vae"),
    "no tokenizer": (remove("tokenizer"), "component tokenizer"),
    "no scheduler": (remove("scheduler"), "component scheduler"),
    "VAE cut short": (cut, "readable safetensors"),
    "no weights": (lambda folder: (folder / UNET).unlink(), "expected the weights unet/"),
    "one weight missing": (rewrite(lambda held: held.pop("conv_in.bias")), "conv_in.bias"),
    "one encoder weight missing": (
        rewrite(lambda held: held.pop(next(iter(held))), "text_encoder/model.safetensors"),
        "expected every weight",
    ),
    "one component in another precision": (rewrite(halve), "F16 .as in unet"),
    "weights as integers": (rewrite(round_off), "expected all weights in one of F32, F16, BF16"),
    "NaN weights": (rewrite(spoil), "NaN or infinity in conv_in.weight"),
    "code of its own": (foreign, "only what those libraries ship is run"),
    "index that is no JSON": (lambda folder: (folder / "model_index.json").write_bytes(b"\xff{"), "model_index.json"),
}


def test_an_unbroken_folder_loads(copied) -> None:
    assert load_pipeline(copied, "cpu").safety_checker is None


@pytest.mark.parametrize(("breaking", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_refused_with_what_is_wrong(copied, breaking, said) -> None:
    breaking(copied)
    with pytest.raises(scapre.CheckpointError, match=said):
        load_pipeline(copied, "cpu")


def test_a_checkpoint_in_another_precision_or_of_other_shapes_than_its_base_is_refused(copied) -> None:
    for file in copied.rglob("*.safetensors"):
        rewrite(halve, str(file.relative_to(copied)))(copied)
    with pytest.raises(scapre.CheckpointError, match="base's precision F32, found F16"):
        check_alike(MODEL, copied)
    shutil.rmtree(copied)
    shutil.copytree(MODEL, copied)
    rewrite(lambda held: held.update({"conv_in.bias": torch.zeros(7)}))(copied)
    with pytest.raises(scapre.CheckpointError, match=r"shape \(\d+,\) of unet.conv_in.bias, found \(7,\)"):
        check_alike(MODEL, copied)


def widened(held: dict[str, torch.Tensor]) -> None:
    for name in [name for name in held if name.endswith("lora_down.weight")]:
        held[name] = torch.zeros(held[name].shape[0], held[name].shape[1] + 3)


def renamed(held: dict[str, torch.Tensor]) -> None:
    module = next(name for name in held if name.endswith("lora_down.weight")).removesuffix(".lora_down.weight")
    for name in [name for name in held if name.startswith(module)]:
        held[name.replace("down_blocks_0", "down_blocks_9").replace("up_blocks_1", "up_blocks_9")] = held.pop(name)


@pytest.mark.parametrize("change", [widened, renamed])
def test_a_lora_for_another_model_is_refused(forms, tmp_path, change) -> None:
    held = load_file(forms["LoRA"])
    change(held)
    save_file(held, tmp_path / "other.safetensors")
    checkpoint = open_checkpoint(tmp_path / "other.safetensors", base=MODEL)
    with pytest.raises(scapre.CheckpointError, match="LoRA"):
        checkpoint.materialise(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


def test_an_edit_on_another_base_is_refused(forms, tmp_path) -> None:
    with pytest.raises(scapre.BaseMismatchError):
        open_checkpoint(forms["edit"], base=forms["folder"]).materialise(tmp_path)


def test_a_single_file_for_a_base_of_other_shapes_is_refused(forms, copied, tmp_path) -> None:
    config = json.loads((copied / "unet" / "config.json").read_text())
    config["block_out_channels"] = [width * 2 for width in config["block_out_channels"]]
    (copied / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(scapre.CheckpointError, match="single file of its base's family"):
        open_checkpoint(forms["single file"], base=copied).materialise(tmp_path)


@pytest.mark.parametrize("wrapper", ["text_model.", ""])
def test_a_lora_on_the_text_encoder_is_worn_not_left_out(tmp_path, wrapper) -> None:
    layer = "encoder.layers.0.self_attn.q_proj"
    weights = load_file(MODEL / "text_encoder" / "model.safetensors")
    width = next(len(tensor) for name, tensor in weights.items() if name.endswith(f"{layer}.weight"))
    torch.manual_seed(0)
    stem, file = f"text_encoder.{wrapper}{layer}", tmp_path / "lora.safetensors"
    save_file({f"{stem}.lora_A.weight": torch.randn(2, width), f"{stem}.lora_B.weight": torch.randn(width, 2)}, file)
    folder = open_checkpoint(file, base=MODEL).materialise(tmp_path / "cache")
    assert np.abs(draw(folder) - draw(MODEL)).max() > 0.01
