"""Times the judge's rendering against plain diffusers loops, side by side, on the reference model.

    python -m tests.benchmarks.rendering --out var/bench-render

A plain loop calls the same pipeline with the same prompts, seeds and sampler, and saves each picture as PNG: one at a
time, as scripts usually do, or in batches of the same size. Rendering does more (addresses, checks, whole files or
none). All take turns, so that another program on the machine slows each down alike; medians over the rounds count.
Prints a table, writes it as JSON, and exits with 1 if rendering is slower than a plain loop.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from flows.judgement import default_sampler
from flows.pipelines import Pipeline, load_pipeline
from tests.benchmarks.report import Bar
from validation import PictureStore, Probe, Sampler, build_probes, render
from validation.rendering import build_scheduler

MODEL = Path(__file__).parents[2] / "infra" / "reference" / "model"
PROMPTS = ("a tiger", "a photo of a violin", "two apples", "an owl at night")
AT_LEAST = 1.0
"""Rendering's pictures a second over the plain loop's."""
NOISE = 0.03
"""What a ratio of two equal programs is allowed to be off by on a shared machine."""
Drawing = Callable[[Sequence[Probe], Path], None]


def plain_loop(pipeline: Pipeline, sampler: Sampler, *, batch_size: int) -> Drawing:
    """Returns the loop that anyone would write."""

    def draw(probes: Sequence[Probe], folder: Path) -> None:
        pipeline.set_progress_bar_config(disable=True)
        for start in range(0, len(probes), batch_size):
            batch = probes[start : start + batch_size]
            drawn = pipeline(
                [probe.prompt for probe in batch],
                generator=[torch.Generator("cpu").manual_seed(probe.seed) for probe in batch],
                num_inference_steps=sampler.steps,
                guidance_scale=sampler.guidance,
                height=sampler.pixels,
                width=sampler.pixels,
            ).images
            for probe, picture in zip(batch, drawn, strict=True):
                picture.save(folder / f"{probe.seed}.png")

    return draw


def our_rendering(pipeline: Pipeline, sampler: Sampler, *, batch_size: int) -> Drawing:
    """Returns the judge's rendering."""

    def draw(probes: Sequence[Probe], folder: Path) -> None:
        store = PictureStore(folder)
        render(pipeline, probes, store=store, model_digest="0" * 64, sampler=sampler, batch_size=batch_size)

    return draw


def measure(pictures: int, rounds: int, *, batch_size: int) -> dict[str, list[float]]:
    """Returns pictures a second of each way of drawing, one figure a round; the ways take turns."""
    pipeline = load_pipeline(MODEL, "cpu")
    sampler = default_sampler(pipeline)
    pipeline.scheduler = build_scheduler(pipeline, sampler.scheduler)
    ways = {
        "rendering": our_rendering(pipeline, sampler, batch_size=batch_size),
        "plain loop, one at a time": plain_loop(pipeline, sampler, batch_size=1),
        "plain loop, same batches": plain_loop(pipeline, sampler, batch_size=batch_size),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for place in range(rounds + 1):  # the first round pays for what is only paid once, and does not count
        probes = build_probes(
            "bench", "hidden", prompts=PROMPTS, count=pictures, first_seed=place * pictures, pack="bench"
        )
        for name in list(ways)[:: 1 if place % 2 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                ways[name](probes, Path(folder))
                if place:
                    speeds[name].append(pictures / (time.perf_counter() - started))
    return speeds


def bars_of(speeds: dict[str, list[float]]) -> list[Bar]:
    """Returns rendering's speed over each plain loop's, round by round."""
    own = speeds["rendering"]
    return [
        Bar(
            f"rendering over {name}", [o / t for o, t in zip(own, their, strict=True)], AT_LEAST - NOISE, is_upper=False
        )
        for name, their in speeds.items()
        if name != "rendering"
    ]


def main(arguments: list[str]) -> int:
    """Runs the comparison; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("var/bench-render"))
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args(arguments)
    speeds = measure(given.pictures, given.rounds, batch_size=given.batch)
    bars, console = bars_of(speeds), Console(width=120)
    table = Table(
        "way of drawing", "pictures a second, median", "of rounds", title=f"{torch.get_num_threads()} threads"
    )
    for name, found in speeds.items():
        table.add_row(name, f"{statistics.median(found):.1f}", ", ".join(f"{speed:.1f}" for speed in found))
    console.print(table)
    for bar in bars:
        console.print(f"{'met   ' if bar.is_met else 'MISSED'} {bar.name}: {bar.median:.2f} (>= {bar.limit:g})")
    given.out.mkdir(parents=True, exist_ok=True)
    record = {"threads": torch.get_num_threads(), "batch": given.batch, "pictures": given.pictures, "speeds": speeds}
    (given.out / "rendering.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if all(bar.is_met for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
