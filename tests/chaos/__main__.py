"""Kills commands at every named point, runs them again, and compares with what they leave when nobody kills them.

    python -m tests.chaos                 # all points
    python -m tests.chaos --only promote  # the points of one phase
    python -m tests.chaos --crowd         # eight takedowns and two rollbacks at once

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
from tests.chaos.kills import POINTS, Bench


def main(arguments: list[str]) -> int:
    """Runs every point; returns 1 if an outcome is not the one without a kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the points whose phase is this")
    parser.add_argument("--crowd", action="store_true", help="only the takedowns and rollbacks at once")
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
