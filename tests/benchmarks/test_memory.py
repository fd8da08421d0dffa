"""A checkpoint of Stable Diffusion 1.5's size is never in memory: its text encoder is, and what is edited."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.benchmarks.memory import MEMORY_LIMIT_BYTES, measure, parts, unlearn_command, write_checkpoint

VOCABULARY = 0
"""Reading the vocabulary takes minutes; `make bench-memory` does."""
LOAD_ALL = "import sys, safetensors.torch as files; [held.sum() for held in files.load_file(sys.argv[1]).values()]"


@pytest.mark.disk
def test_a_whole_checkpoint_is_edited_in_the_memory_of_its_text_encoder_and_a_little(tmp_path: Path) -> None:
    folder, out = tmp_path / "base", tmp_path / "out"
    encoder_bytes = write_checkpoint(folder, parts(), is_sparse=True)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    control = measure([sys.executable, "-c", LOAD_ALL, str(unet)], tmp_path / "home")
    assert control.peak_bytes > encoder_bytes + MEMORY_LIMIT_BYTES
    ran = measure(unlearn_command(folder, out, VOCABULARY), tmp_path / "home")
    assert ran.peak_bytes - encoder_bytes <= MEMORY_LIMIT_BYTES
    assert ran.seconds["solve"] > 0
    written = out / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors"
    assert written.stat().st_size == unet.stat().st_size
    for place in (folder, out):  # pytest would keep three of them
        shutil.rmtree(place)
