"""How much memory and time `scapre unlearn` needs on a checkpoint of Stable Diffusion 1.5's size.

Writes such a checkpoint with random weights to a temporary folder (4.3 GB, and as much again for the result), runs the
command in a process of its own, and compares with two limits: peak resident memory at most 1.5 GB above the text
encoder's own weights, and time beyond start-up and text encoding at most twice that of copying the file that changes.
The command copies that file while it reads text: of copying, what is left afterwards counts.

The first run reads the vocabulary and tells the memory; the time is the median of further ones, which find its features
in the cache. Each copy comes right after a dry run of the same command: memory that a virtual machine has not touched
lately is slow to write to, and doubles the time of a copy as it does that of saving. Run on an idle machine:
`make bench-memory`.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from rich.console import Console
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from scapre.checkpoint.tensor_files import METADATA
from tests.scapre.tiny_pipelines import clip_tokenizer

GIGABYTE = 1e9
MEMORY_LIMIT_BYTES = 1.5 * GIGABYTE
TIME_LIMIT_COPIES = 2.0
BLOCK = 1 << 22
SECONDS_BETWEEN_LOOKS = 0.02
RUNS = 5
"""Of copy and command, in turn."""


def parts() -> dict[str, nn.Module]:
    """Returns the modules of the checkpoint, without memory for their weights."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "vocab_size": 49408}
    vae = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(cross_attention_dim=768),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **vae
            ),
            "text_encoder": CLIPTextModel(CLIPTextConfig(num_hidden_layers=12, **text)),
        }


def write_random(file: Path, module: nn.Module, *, only: str = "") -> int:
    """Writes random float32 weights for the parameters of `module` that contain `only`, and zeros for the others.

    Returns the bytes of all; where the file system has sparse files, zeros take no place.
    """
    header, first = {METADATA: {"format": "pt"}}, 0
    for name, tensor in module.state_dict().items():
        last = first + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [first, last]}
        first = last
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = (0.03 * np.random.default_rng(0).standard_normal(BLOCK, dtype=np.float32)).tobytes()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        data = opened.tell()
        for name, entry in header.items():
            if name != METADATA and only in name:
                place, end = entry["data_offsets"]
                opened.seek(data + place)
                while place < end:
                    place += opened.write(block[place % len(block) :][: end - place])
        opened.truncate(data + first)
    return first


def write_checkpoint(folder: Path, modules: Mapping[str, nn.Module], *, is_sparse: bool = False) -> int:
    """Writes the checkpoint, or a sparse one with cross-attention alone; returns the bytes of its text encoder."""
    written = {}
    for name, module in modules.items():
        (folder / name).mkdir(parents=True)
        config = module.config.to_dict() if name == "text_encoder" else {**module.config}
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        config |= {} if name == "text_encoder" else {"_class_name": type(module).__name__}
        (folder / name / "config.json").write_text(json.dumps(config, default=str))
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        only = "attn2" if is_sparse and name != "text_encoder" else ""
        written[name] = write_random(folder / name / f"{stem}.safetensors", module, only=only)
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(folder / "tokenizer")
    classes = {"tokenizer": ["transformers", "CLIPTokenizer"], "text_encoder": ["transformers", "CLIPTextModel"]}
    index = {"_class_name": "StableDiffusionPipeline", **classes}
    (folder / "model_index.json").write_text(json.dumps(index))
    return written["text_encoder"]


@dataclass(frozen=True)
class Ran:
    """What a command cost."""

    seconds: Mapping[str, float]
    """Of each phase it told of, and in all."""
    peak_bytes: int


def unlearn_command(folder: Path, out: Path | None, vocabulary: int) -> list[str]:
    """Returns the command that is measured, or without `out` its dry run."""
    names = ["--concept", "tiger", "--concept", "violin", "--retain", "lion", "--retain", "guitar"]
    # the random checkpoint's tokenizer knows few words, a real one most of the vocabulary
    dials = ["--dial", f"vocabulary={vocabulary}", "--dial", "longest_word=0"]
    written = ["--dry-run"] if out is None else ["--out", str(out)]
    return [sys.executable, "-m", "flows.cli", "unlearn", str(folder), *names, *dials, *written]


def measure(command: Sequence[str], home: Path) -> Ran:
    """Runs the command in a process of its own, with `home` as its home folder.

    Raises:
        CalledProcessError: it fails.
    """
    started, peak = time.perf_counter(), 0
    settings = {**os.environ, "SCAPRE_HOME": str(home)}
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(command, stdout=told, env=settings)
        while process.poll() is None:  # its own high-water mark: what the system tells afterwards begins with ours
            peak = max(peak, high_water_bytes(process.pid))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        told.seek(0)
        text = told.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, text)
    seconds = {phase: float(spent) for phase, spent in re.findall(r"(\w+) ([\d.]+) s(?:,|$)", text, re.MULTILINE)}
    return Ran({**seconds, "in all": time.perf_counter() - started}, peak)


def high_water_bytes(pid: int) -> int:
    """Returns the most memory that the process had resident so far; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def copying_seconds(file: Path, out: Path) -> float:
    """Returns how long a copy of `file`, flushed to disk, takes."""
    os.sync()  # what was written before is not part of it
    started = time.perf_counter()
    shutil.copyfile(file, out)
    with out.open("rb") as opened:
        os.fsync(opened.fileno())
    took = time.perf_counter() - started
    out.unlink()
    return took


def beyond(ran: Ran) -> float:
    """Returns the seconds beyond start-up and text encoding."""
    return sum(spent for phase, spent in ran.seconds.items() if phase not in ("encode", "in all"))


def phases(ran: Ran) -> str:
    """Returns the seconds of each phase in words."""
    return ", ".join(f"{phase} {spent:.1f} s" for phase, spent in ran.seconds.items())


def shown(seconds: Sequence[float]) -> str:
    """Returns median and range in words."""
    return f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"


def main() -> int:
    """Measures, prints, and returns 1 if a limit is broken."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--vocabulary", type=int, default=2000, help="the engine's own default is 2000")
    options.add_argument("--runs", type=int, default=RUNS, help="of copy and command, in turn")
    chosen = options.parse_args()
    console, runs, copies = Console(highlight=False, soft_wrap=True), [], []
    with tempfile.TemporaryDirectory(prefix="scapre-bench-") as place:
        folder, out, home = (Path(place) / name for name in ("base", "out", "home"))
        encoder_bytes = write_checkpoint(folder, parts())
        unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
        total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        first = measure(unlearn_command(folder, out, chosen.vocabulary), home)
        console.print(f"first run: {phases(first)}")
        for number in range(chosen.runs):
            shutil.rmtree(out)
            measure(unlearn_command(folder, None, chosen.vocabulary), home)
            copies.append(copying_seconds(unet, Path(place) / "copy"))
            os.sync()
            runs.append(measure(unlearn_command(folder, out, chosen.vocabulary), home))
            console.print(f"{number + 1} of {chosen.runs}: {phases(runs[-1])}; copy {copies[-1]:.1f} s")
    above = max(ran.peak_bytes for ran in (first, *runs)) - encoder_bytes
    beyonds = [beyond(ran) for ran in runs]
    times = statistics.median(beyonds) / statistics.median(copies)
    is_met = above <= MEMORY_LIMIT_BYTES and times <= TIME_LIMIT_COPIES
    lines = (
        f"checkpoint {total / GIGABYTE:.2f} GB, of it text encoder {encoder_bytes / GIGABYTE:.2f} GB",
        f"peak memory {above / GIGABYTE:.2f} GB above the text encoder, at most {MEMORY_LIMIT_BYTES / GIGABYTE:.2f}",
        f"{shown(beyonds)} beyond start-up and text encoding; to copy the changed file takes {shown(copies)}",
        f"{times:.2f} times as long, at most {TIME_LIMIT_COPIES:.2f}",
        "limits met" if is_met else "LIMITS BROKEN",
    )
    console.print(*lines, sep="\n")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
