"""What was measured, held to its bars, as a table, CSV and JSON."""

import csv
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

PHASES = ("encode", "statistics", "solve", "refine", "save")
ENGINE_PHASES = ("statistics", "solve", "refine")


@dataclass(frozen=True)
class Run:
    """One method, once."""

    method: str
    concepts: int
    repetition: int
    seconds: dict[str, float]
    """Per phase; encode is scaled from a sample."""
    diagnostics: dict[str, float | int]
    peak_gib: float
    """Most memory the whole process had taken by then."""

    @property
    def engine_seconds(self) -> float:
        """Seconds of statistics, solve and refine."""
        return sum(self.seconds.get(phase, 0.0) for phase in ENGINE_PHASES)


@dataclass(frozen=True)
class Bar:
    """One figure and what it is held to."""

    name: str
    values: Sequence[float]
    """One per repetition; their median counts."""
    limit: float
    is_upper: bool

    @property
    def median(self) -> float:
        """What is held to the limit."""
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool:
        """Whether the median keeps to the limit."""
        return self.median <= self.limit if self.is_upper else self.median >= self.limit


@dataclass
class Report:
    """Everything measured."""

    machine: dict[str, str | float]
    runs: list[Run] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_passed(self) -> bool:
        """Whether every bar is met."""
        return all(bar.is_met for bar in self.bars)

    def of(self, method: str, concepts: int) -> list[Run]:
        """Returns the runs of one cell, in the order of their repetition."""
        return [run for run in self.runs if (run.method, run.concepts) == (method, concepts)]

    def cells(self) -> Iterator[list[Run]]:
        """Yields the runs of every cell."""
        for concepts, method in sorted({(run.concepts, run.method) for run in self.runs}):
            yield self.of(method, concepts)


def tables_of(report: Report) -> list[Table]:
    """Returns the timings and the bars as tables."""
    timings = Table(
        "method",
        "concepts",
        *PHASES,
        "engine",
        "runs",
        "peak GiB",
        title="seconds: medians; engine is statistics, solve and refine",
    )
    for runs in report.cells():
        phases = [_shown(statistics.median(run.seconds.get(phase, 0.0) for run in runs)) for phase in PHASES]
        engine = _spread([run.engine_seconds for run in runs])
        peak = f"{max(run.peak_gib for run in runs):.1f}"
        timings.add_row(runs[0].method, str(runs[0].concepts), *phases, engine, str(len(runs)), peak)
    bars = Table("bar", "median (least to most)", "limit", "", title="bars")
    for bar in report.bars:
        limit = f"{'≤' if bar.is_upper else '≥'} {bar.limit:g}"
        bars.add_row(bar.name, _spread(bar.values), limit, "met" if bar.is_met else "MISSED")
    return [timings, bars]


def write_report(report: Report, folder: Path) -> None:
    """Writes `engine.csv`, one line per run, and `engine.json`, all there is, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "engine.csv").open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["method", "concepts", "repetition", *PHASES, "engine", "peak_gib"])
        for run in report.runs:
            phases = [f"{run.seconds.get(phase, 0.0):.4f}" for phase in PHASES]
            line = [run.method, run.concepts, run.repetition, *phases]
            writer.writerow([*line, f"{run.engine_seconds:.4f}", f"{run.peak_gib:.2f}"])
    content = asdict(report) | {
        "bars": [asdict(bar) | {"median": bar.median, "is_met": bar.is_met} for bar in report.bars]
    }
    (folder / "engine.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def _spread(values: Sequence[float]) -> str:
    middle = _shown(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({_shown(min(values))} to {_shown(max(values))})"


def _shown(value: float) -> str:
    return f"{value:.2f}" if value == 0.0 or value >= 0.005 else f"{value:.0e}"
