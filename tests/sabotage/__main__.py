"""Breaks models and set-ups on purpose and holds the judge's answers to the right ones.

    python -m tests.sabotage                      # on the reference model
    python -m tests.sabotage --world colour       # on the world in memory

Prints a table and exits with 1 if anything passed that must not, or was refused for another reason.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.sabotage.scenarios import SCENARIOS, Bench
from tests.sabotage.worlds import ColourWorld, ReferenceWorld


def main(arguments: list[str]) -> int:
    """Runs every scenario of a world; returns 1 if an answer is not the right one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=("reference", "colour"), default="reference")
    parser.add_argument("--only", default="", help="run the scenarios whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("var/sabotage"))
    given = parser.parse_args(arguments)
    chosen = [one for one in SCENARIOS if given.world in one.worlds and given.only in one.name]
    console, records = Console(width=180), []
    table = Table(
        "what is broken", "answer", "why", "s", "", title=f"{len(chosen)} scenarios on the {given.world} world"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "work"
        world = ColourWorld() if given.world == "colour" else ReferenceWorld(Path(scratch) / "models")
        for scenario in chosen:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            started = time.monotonic()
            found = scenario.run(Bench(world, folder, Path(scratch) / "pictures"))
            seconds, faults = time.monotonic() - started, scenario.faults(found)
            said = found.said if len(found.said) < 200 else f"{found.said[:199]}…"
            table.add_row(scenario.name, found.answer, said, f"{seconds:.1f}", "; ".join(faults) or "right")
            records.append({"name": scenario.name, **asdict(found), "seconds": round(seconds, 1), "faults": faults})
            console.print(f"{'WRONG' if faults else 'right'} {scenario.name}: {found.answer}", highlight=False)
    wrong = [record for record in records if record["faults"]]
    console.print(table)
    console.print(f"{len(records) - len(wrong)} of {len(records)} answers are the right ones")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{given.world}.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
