"""Times every method on random weights of Stable Diffusion 1.5's shapes: encode, statistics, solve, refine, save.

    python -m tests.benchmarks.engine --out var/bench-engine

Prints a table, writes it as CSV and JSON, and exits with 1 if a bar is missed. Text features are random numbers (see
`tests.benchmarks.synthetic`), the same for every method; a text encoder of CLIP-L's size with random weights is timed
on a small sample. `scapre-encoder` edits one memory of that encoder's size. All run on as many threads as torch would
take: the engine has each do a part, the plain implementation leaves them to torch.
"""

import argparse
import functools
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from scapre.architectures.base import BaseWeights
from scapre.concepts import EditSpec
from scapre.determinism import Stopwatch, single_threaded
from scapre.digests import tensor_digests
from scapre.edit import build_edit
from scapre.methods import METHODS, Problem, find_method
from tests.benchmarks.plain_released import PlainReleased
from tests.benchmarks.report import Bar, Report, Run, tables_of, write_report
from tests.benchmarks.synthetic import SyntheticText, TextShape, synthetic_statistics, synthetic_text

SD15_ROWS: tuple[tuple[int, int], ...] = ((320, 10), (640, 10), (1280, 12))
"""Output rows of a projection, and how many projections have them."""
CONTEXT_TOKENS = 77
MEMORY_OVER_WIDTH = 4
"""How many times as wide as the text encoder the memory of its last MLP is."""
TABLE_WIDTH = 120
KEPT_DIAGNOSTICS = ("condition_number", "own_directions", "solver_error", "solver_iterations")


@dataclass(frozen=True)
class Plan:
    """What is run and what it is held to; every field is an option of the command line."""

    few: int = 50
    many: int = 1000
    most: int = 5000
    width: int = 768
    rows_share: float = 1.0
    """Share of every projection's rows that is kept."""
    found: int = 1162
    """Names of the vocabulary."""
    repetitions: int = 5
    repetitions_of_most: int = 1
    peers: int = 1
    """Largest size the methods that no bar needs are run with: 0 none, 1 `few`, 2 `many`."""
    clock: str = "wall"
    """wall: seconds of the clock; cpu: of all threads together, which others on the machine disturb less."""
    plain_rows: int = 100
    """Rows per repetition that the plain implementation solves."""
    encoder_layers: int = 12
    encoder_prompts: int = 16
    least_speed_up: float = 200.0
    most_distance: float = 1e-9
    most_over_uce: float = 3.0
    most_growth: float = 3.0
    most_gib: float = 24.0

    def now(self) -> float:
        """Returns the seconds of the chosen clock."""
        return {"cpu": time.process_time, "wall": time.perf_counter}[self.clock]()

    def text_of(self, method: str, concepts: int) -> TextShape:
        """Returns how much text a request for `concepts` concepts is, and how wide what the method's weights read."""
        width = MEMORY_OVER_WIDTH * self.width if find_method(method).edits_memories else self.width
        return TextShape(concepts, width=width, found=self.found)

    def cells(self) -> Iterator[tuple[str, int, int]]:
        """Yields method, concepts and repetition; a whole round before the next, so that noise meets all alike."""
        at_few = sorted(METHODS) if self.peers >= 1 else ["scapre", "scapre-released", "uce"]
        at_many = sorted(METHODS) if self.peers >= 2 else ["scapre"]
        for repetition in range(self.repetitions):
            yield from ((method, self.few, repetition) for method in at_few)
            yield from ((method, self.many, repetition) for method in at_many)
        yield from (("scapre", self.most, repetition) for repetition in range(self.repetitions_of_most))


def random_projections(plan: Plan) -> dict[str, Tensor]:
    """Returns float32 weights of SD 1.5's shapes, scaled as a fresh linear layer."""
    source = torch.Generator().manual_seed(0)
    sizes = [max(2, int(size * plan.rows_share)) for size, count in SD15_ROWS for _ in range(count)]
    return {
        f"projection {place:02d}": torch.randn(size, plan.width, generator=source) / plan.width**0.5
        for place, size in enumerate(sizes)
    }


def random_memory(plan: Plan) -> dict[str, Tensor]:
    """Returns float32 weights of the second half of an encoder's last MLP, scaled likewise."""
    width = MEMORY_OVER_WIDTH * plan.width
    return {"memory": torch.randn(plan.width, width, generator=torch.Generator().manual_seed(0)) / width**0.5}


def seconds_per_prompt(plan: Plan) -> float:
    """Returns the seconds a CLIP-L text encoder with random weights takes for one prompt, in a batch."""
    config = CLIPTextConfig(
        hidden_size=plan.width,
        intermediate_size=4 * plan.width,
        num_hidden_layers=plan.encoder_layers,
        num_attention_heads=max(plan.width // 64, 1),
        max_position_embeddings=CONTEXT_TOKENS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = CLIPTextModel(config).eval()
        tokens = torch.randint(config.vocab_size, (plan.encoder_prompts, CONTEXT_TOKENS))
    encoder(tokens[:1])
    started = plan.now()
    encoder(tokens)
    return (plan.now() - started) / plan.encoder_prompts


def prompts_of(method: str, shape: TextShape) -> int:
    """Returns how many prompts the engine encodes: targets, their neighbours, names, vocabulary, the empty prompt.

    Memories are read in a way of their own, after bare names have been read in the plain way.
    """
    aligned, retained = 2 * shape.sentences * shape.targets, shape.sentences * shape.named + 2 * shape.found + 1
    before = shape.targets + shape.named + shape.found if find_method(method).edits_memories else 0
    return before + aligned + retained


def run_once(plan: Plan, projections: dict[str, Tensor], text: SyntheticText, method: str, repetition: int) -> Run:
    """Returns the seconds of one run, all but encode."""
    clock, chosen = Stopwatch(plan.now), find_method(method)
    dials = chosen.resolve({})
    with single_threaded():  # as `scapre.unlearn` does: what is independent is done side by side
        with clock.phase("statistics"):
            problem = Problem.of(projections, synthetic_statistics(text))
        solution = chosen.solve(problem, dials, clock)
    digests = tensor_digests(projections)
    spec = EditSpec(method, tuple(target.placed.concept for target in problem.statistics.targets), (), dials, "0" * 64)
    with clock.phase("save"), tempfile.TemporaryDirectory() as folder:
        deltas = {name: solution.delta[rows] for name, rows in problem.parts.items()}
        build_edit(BaseWeights(projections, digests), spec, deltas=deltas, diagnostics={}).save(
            Path(folder) / "edit.safetensors"
        )
    diagnostics = {key: solution.diagnostics[key] for key in KEPT_DIAGNOSTICS if key in solution.diagnostics}
    return Run(method, len(text.targets), repetition, clock.seconds, diagnostics, peak_gib())


class PlainClock:
    """Times the plain implementation on a sample of rows, and says how far what it answers is from what we do."""

    def __init__(self, plan: Plan, projections: dict[str, Tensor], text: SyntheticText) -> None:
        self._plan, self._problem = plan, Problem.of(projections, synthetic_statistics(text))
        self._dials = find_method("scapre-released").resolve({})
        self._plain = PlainReleased(self._problem, self._dials)

    def seconds(self, repetition: int) -> dict[str, float]:
        """Returns the seconds per phase for all rows, scaled up from a random sample."""
        rows, clock = self._sample(range(len(self._problem.base)), repetition), Stopwatch(self._plan.now)
        for row in rows:
            with clock.phase("statistics"):
                information, entropy = self._plain.information(row), self._plain.entropy(row)
            with clock.phase("solve"):  # how a mask comes from all rows' information costs nothing beside it
                self._plain.change(row, entropy=entropy, mask=information, weight=information)
        return {phase: spent / len(rows) * len(self._problem.base) for phase, spent in clock.seconds.items()}

    def distance(self) -> float:
        """Returns ‖plain − ours‖ / ‖plain‖ over a random sample of the rows of one projection of each size."""
        ours = find_method("scapre-released").solve(self._problem, self._dials, Stopwatch()).delta
        of_each_size = {part.stop - part.start: part for part in self._problem.parts.values()}
        plain, chosen = [], []
        for part in of_each_size.values():
            every = range(part.start, part.stop)
            masks, weights = self._plain.masks_and_weights([self._plain.information(row) for row in every])
            entropy = statistics.fmean(self._plain.entropy(row) for row in every)
            for row in self._sample(every, 0):
                mask, weight = masks[row - part.start], weights[row - part.start]
                plain.append(self._plain.change(row, entropy=entropy, mask=mask, weight=weight))
                chosen.append(row)
        expected = torch.stack(plain)
        return float((expected - ours[chosen]).norm() / expected.norm())

    def _sample(self, rows: range, seed: int) -> list[int]:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        return [rows[place] for place in order[: self._plan.plain_rows].tolist()]


def measure(plan: Plan, console: Console) -> Report:
    """Returns everything measured, bars included."""
    report, per_prompt = Report(machine_facts()), seconds_per_prompt(plan)
    projections, memory = random_projections(plan), random_memory(plan)
    text_of = functools.lru_cache(maxsize=1)(functools.partial(synthetic_text, seed=0))
    plain = PlainClock(plan, projections, text_of(plan.text_of("scapre-released", plan.few)))
    distance, plain_seconds = plain.distance(), []
    for method, concepts, repetition in plan.cells():
        shape = plan.text_of(method, concepts)
        weights = memory if find_method(method).edits_memories else projections
        run = run_once(plan, weights, text_of(shape), method, repetition)
        run.seconds["encode"] = per_prompt * prompts_of(method, shape)
        if (method, concepts) == ("scapre-released", plan.few):
            plain_seconds.append(plain.seconds(repetition))
        report.runs.append(run)
        console.print(f"{method}, {concepts} concepts: {run.engine_seconds:.2f} s", style="dim")
    report.bars = bars_of(report, plan, plain_seconds, distance)
    over_default, over_released = (
        statistics.median(
            sum(spent.values()) / run.engine_seconds for spent, run in zip(plain_seconds, runs, strict=True)
        )
        for runs in (report.of("scapre", plan.few), report.of("scapre-released", plan.few))
    )
    report.notes = [
        f"seconds: {plan.clock} clock, threads: {torch.get_num_threads()}, processes that wanted to run at the end: "
        f"{os.getloadavg()[0]:.1f}",
        f"encode: {per_prompt:.3f} s per prompt on a sample of {plan.encoder_prompts}, scaled; all but scapre-encoder "
        "read alike",
        "plain: the released algorithm row by row, scaled from a sample of "
        f"{plan.plain_rows}: {statistics.median(spent['statistics'] for spent in plain_seconds):.0f} s for what it "
        f"reads off each row, {statistics.median(spent['solve'] for spent in plain_seconds):.0f} s for one Cholesky "
        f"factorization each; in all {over_default:.0f} times as long as scapre and {over_released:.0f} as "
        "scapre-released, statistics, solve and refine of each",
    ]
    return report


def bars_of(report: Report, plan: Plan, plain_seconds: list[dict[str, float]], distance: float) -> list[Bar]:
    """Returns the bars; ratios are taken within a repetition."""
    released, uce = report.of("scapre-released", plan.few), report.of("uce", plan.few)
    few, many, most = (report.of("scapre", concepts) for concepts in (plan.few, plan.many, plan.most))
    speed_up = [plain["solve"] / run.seconds["solve"] for plain, run in zip(plain_seconds, released, strict=True)]
    over_uce = [ours.engine_seconds / peer.engine_seconds for ours, peer in zip(few, uce, strict=True)]
    growth = [large.engine_seconds / small.engine_seconds for large, small in zip(many, few, strict=True)]
    bars = [
        Bar(f"plain over scapre-released, {plan.few} concepts, solve", speed_up, plan.least_speed_up, is_upper=False),
        Bar("plain and scapre-released, relative distance", [distance], plan.most_distance, is_upper=True),
        Bar(f"scapre over uce, {plan.few} concepts, engine", over_uce, plan.most_over_uce, is_upper=True),
        Bar(f"scapre, {plan.many} over {plan.few} concepts, engine", growth, plan.most_growth, is_upper=True),
    ]
    if plan.repetitions_of_most:
        bars.append(
            Bar(f"scapre, {plan.most} concepts, peak GiB", [run.peak_gib for run in most], plan.most_gib, is_upper=True)
        )
    return bars


def peak_gib() -> float:
    """Returns the most memory this process has taken."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def machine_facts() -> dict[str, str | float]:
    """Returns what the figures depend on."""
    return {
        "processor": platform.machine(),
        "cores": float(os.cpu_count() or 0),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "threads": float(torch.get_num_threads()),
    }


def plan_of(arguments: list[str]) -> tuple[Plan, Path]:
    """Returns the plan and the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("var/bench-engine"))
    for entry in fields(Plan):
        option = f"--{entry.name.replace('_', '-')}"
        choices = ("cpu", "wall") if entry.name == "clock" else None
        parser.add_argument(option, type=type(entry.default), default=entry.default, choices=choices)
    given = vars(parser.parse_args(arguments))
    folder = given.pop("out")
    return Plan(**given), folder


def main(arguments: list[str]) -> int:
    """Runs the benchmark; returns 1 if a bar is missed."""
    plan, folder = plan_of(arguments)
    console = Console(width=TABLE_WIDTH)
    with torch.no_grad():
        report = measure(plan, console)
    for table in tables_of(report):
        console.print(table)
    for note in report.notes:
        console.print(note)
    write_report(report, folder)
    console.print(f"written to {folder}")
    return 0 if report.is_passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
