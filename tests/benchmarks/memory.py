"""How much memory and time `scapre unlearn` needs on a checkpoint of Stable Diffusion 1.5's size.

Writes such a checkpoint with random weights to a temporary folder (4.3 GB, and as much again for the result), runs the
command in a process of its own, and compares with two limits: peak resident memory at most 1.5 GB above the text
encoder's own weights, and time beyond start-up and text encoding at most twice that of copying the file that changes.
Run on an idle machine: `make bench-memory`.
"""

import argparse
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

sys.path.insert(0, str(Path(__file__).parents[1] / "scapre"))
from tiny_pipelines import clip_tokenizer

GIGABYTE = 1e9
MEMORY_LIMIT_BYTES = 1.5 * GIGABYTE
TIME_LIMIT_COPIES = 2.0
BLOCK = 1 << 22
WHOLE_SIZE = {"block_out_channels": (320, 640, 1280, 1280)}
TEST_SIZE = {"block_out_channels": (32, 64, 128, 128)}


def parts(size: str) -> dict[str, nn.Module]:
    """Returns the modules of the checkpoint, without memory for their weights."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "vocab_size": 49408}
    vae = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(cross_attention_dim=768, **(WHOLE_SIZE if size == "whole" else TEST_SIZE)),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **vae
            ),
            "text_encoder": CLIPTextModel(CLIPTextConfig(num_hidden_layers=12 if size == "whole" else 2, **text)),
        }


def write_random(file: Path, module: nn.Module) -> int:
    """Writes random float32 weights for every parameter of `module`; returns their bytes."""
    header, first = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in module.state_dict().items():
        last = first + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [first, last]}
        first = last
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = (0.03 * np.random.default_rng(0).standard_normal(BLOCK, dtype=np.float32)).tobytes()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, first, len(block)):
            opened.write(block[: first - start])
    return first


def write_checkpoint(folder: Path, modules: Mapping[str, nn.Module]) -> int:
    """Writes the checkpoint; returns the bytes of its text encoder's weights."""
    written = {}
    for name, module in modules.items():
        (folder / name).mkdir(parents=True)
        config = module.config.to_dict() if name == "text_encoder" else {**module.config}
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        config |= {} if name == "text_encoder" else {"_class_name": type(module).__name__}
        (folder / name / "config.json").write_text(json.dumps(config, default=str))
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        written[name] = write_random(folder / name / f"{stem}.safetensors", module)
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(folder / "tokenizer")
    classes = {"tokenizer": ["transformers", "CLIPTokenizer"], "text_encoder": ["transformers", "CLIPTextModel"]}
    index = {"_class_name": "StableDiffusionPipeline", **classes}
    (folder / "model_index.json").write_text(json.dumps(index))
    return written["text_encoder"]


def measure(folder: Path, out: Path, vocabulary: int) -> tuple[dict[str, float], int]:
    """Runs the command; returns the seconds of each of its phases and in all, and its peak resident bytes."""
    names = ["--concept", "tiger", "--concept", "violin", "--retain", "lion", "--retain", "guitar"]
    # the random checkpoint's tokenizer knows few words, a real one most of the vocabulary
    dials = ["--dial", f"vocabulary={vocabulary}", "--dial", "longest_word=0"]
    command = [sys.executable, "-m", "flows.cli", "unlearn", str(folder), *names, *dials, "--out", str(out)]
    started = time.perf_counter()
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = {phase: float(spent) for phase, spent in re.findall(r"(\w+) ([\d.]+) s(?:,|$)", ran.stdout, re.MULTILINE)}
    seconds["in all"] = time.perf_counter() - started
    return seconds, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def copying_seconds(file: Path, out: Path) -> float:
    """Returns how long a copy of `file`, flushed to disk, takes."""
    started = time.perf_counter()
    shutil.copyfile(file, out)
    with out.open("rb") as opened:
        os.fsync(opened.fileno())
    return time.perf_counter() - started


def main() -> int:
    """Measures, prints, and returns 1 if a limit is broken."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", choices=("whole", "test"), default="whole")
    options.add_argument("--vocabulary", type=int, default=2000, help="the engine's own default is 2000")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="scapre-bench-") as place:
        folder = Path(place) / "base"
        encoder_bytes = write_checkpoint(folder, parts(chosen.size))
        unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
        total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        copy = copying_seconds(unet, Path(place) / "copy")
        seconds, peak = measure(folder, Path(place) / "out", chosen.vocabulary)
    above = peak - encoder_bytes
    beyond = sum(spent for phase, spent in seconds.items() if phase not in ("encode", "in all"))
    is_met = above <= MEMORY_LIMIT_BYTES and (chosen.size == "test" or beyond <= TIME_LIMIT_COPIES * copy)
    lines = (
        f"checkpoint {total / GIGABYTE:.2f} GB, of it text encoder {encoder_bytes / GIGABYTE:.2f} GB",
        f"peak memory {peak / GIGABYTE:.2f} GB, {above / GIGABYTE:.2f} GB above the text encoder",
        ", ".join(f"{phase} {spent:.1f} s" for phase, spent in seconds.items()),
        f"{beyond:.1f} s beyond start-up and text encoding; copying the changed file takes {copy:.1f} s",
        "limits met" if is_met else "LIMITS BROKEN",
    )
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
