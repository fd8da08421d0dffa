"""Kills commands at every named point, runs them again, and compares with what they leave when nobody kills them.

With `--faults`, the object store fails instead of the command.

    python -m tests.chaos                 # all points
    python -m tests.chaos --only promote  # the points of one phase
    python -m tests.chaos --crowd         # eight takedowns and two rollbacks at once
    python -m tests.chaos --faults        # every fault of the object store

Exits with 1 if anything differs.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.chaos.crowd import ROLLBACKS, TAKEDOWNS, crowd
from tests.chaos.faults import SCENARIOS, Scenario, StoreBench, open_bench
from tests.chaos.kills import POINTS, Bench


def main(arguments: list[str]) -> int:
    """Runs every point; returns 1 if an outcome is not the one without a kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the points of this phase; faults whose name holds it")
    parser.add_argument("--crowd", action="store_true", help="only the takedowns and rollbacks at once")
    parser.add_argument("--faults", action="store_true", help="only the faults of the object store")
    parser.add_argument("--ledger", default=None, help="with --crowd: SQLAlchemy URL; default: SQLite")
    parser.add_argument("--out", type=Path, default=Path("var/chaos"))
    given = parser.parse_args(arguments)
    console, records = Console(width=160), []
    if given.crowd:
        with tempfile.TemporaryDirectory() as scratch:
            faults = crowd(Path(scratch), **({"ledger_url": given.ledger} if given.ledger else {}))
        for fault in faults:
            console.print(fault, markup=False)
        console.print(f"{TAKEDOWNS} takedowns and {ROLLBACKS} rollbacks at once: {'WRONG' if faults else 'right'}")
        return 1 if faults else 0
    if given.faults:
        with tempfile.TemporaryDirectory() as scratch, open_bench(Path(scratch)) as store:
            chosen = [scenario for scenario in SCENARIOS if given.only in scenario.name]
            wrong = sum(_is_wrong(console, store, scenario) for scenario in chosen)
        console.print(f"{len(chosen)} faults of the store: {len(chosen) - wrong} end as they must")
        return 1 if wrong else 0
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        for command, points in POINTS.items():
            for point in points:
                if given.only not in ("", point.phase):
                    continue
                started = time.monotonic()
                faults = bench.kill(command, point)
                seconds = time.monotonic() - started
                console.print(
                    f"{'WRONG' if faults else 'right'} {seconds:5.1f} s  {command}: {point.phase}: {point.name}"
                )
                for fault in faults:
                    console.print(f"      {fault}", markup=False)
                records.append({"command": command, "phase": point.phase, "point": point.name, "faults": faults})
        if any(record["faults"] for record in records):
            console.print(bench.log.read_text()[-6000:], markup=False)
    wrong = sum(bool(record["faults"]) for record in records)
    console.print(f"killed at {len(records)} points: {len(records) - wrong} end as if nobody had killed them")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "kills.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def _is_wrong(console: Console, store: StoreBench, scenario: Scenario) -> bool:
    started = time.monotonic()
    faults = store.check(scenario)
    console.print(f"{'WRONG' if faults else 'right'} {time.monotonic() - started:5.1f} s  {scenario.name}")
    for fault in faults:
        console.print(f"      {fault}", markup=False)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
