"""`scapre ledger …`: the append-only record."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.exit_codes import ExitCode
from flows.services import open_services

app = typer.Typer(no_args_is_help=True, help="The append-only, hash-chained record: show, verify.")


@app.command()
def show(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")] = False,
) -> None:
    """Print every entry, oldest first."""
    entries = open_services().ledger.entries()
    if as_json:
        for entry in entries:
            typer.echo(entry.to_line())
        return
    table = Table("#", "at (UTC)", "kind", "what", "entry")
    for entry in entries:
        facts = ", ".join(f"{key} {_short(value)}" for key, value in sorted(entry.body.items()))
        table.add_row(str(entry.sequence), entry.at[:19], entry.kind, facts, entry.entry_hash[:12])
    Console().print(table if entries else "the ledger is empty")


@app.command()
def verify() -> int:
    """Recompute the chain and name every fault; exit code 1 if there is one."""
    ledger = open_services().ledger
    faults = ledger.verify()
    for fault in faults:
        typer.echo(str(fault))
    entries = ledger.entries()
    if faults:
        typer.echo(f"the ledger does not verify: {len(faults)} faults in {len(entries)} entries")
        return ExitCode.FAILED
    typer.echo(f"the ledger verifies: {len(entries)} entries, head {entries[-1].entry_hash if entries else 'none'}")
    return ExitCode.OK


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else text[:20] + "…"
