"""`scapre ledger …`: the append-only record."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.errors import BadRequestError
from flows.exit_codes import ExitCode
from flows.services import open_services
from infra.chain import Entry, EntryKind, Fault, verify_export
from infra.database import SCHEMA_VERSION, open_database, schema_version
from infra.ledger import Ledger
from infra.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="The append-only, hash-chained record: show, verify, export, upgrade.")
KnownHead = Annotated[
    str | None,
    typer.Option(help="Hash of an entry, noted elsewhere, that the chain must hold; shows when its end was cut off."),
]


@app.command()
def show(
    kind: Annotated[list[str] | None, typer.Option(help="Only entries of this kind; repeat for several.")] = None,
    request: Annotated[str | None, typer.Option(help="Only entries that concern this request.")] = None,
    since: Annotated[str | None, typer.Option(help="Only entries from this day or moment on, ISO 8601, UTC.")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Only so many, the newest.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")] = False,
) -> None:
    """Print entries, oldest first."""
    kinds, moment = _kinds(kind or []), _moment(since)
    entries = [
        entry
        for entry in open_services().ledger.entries()
        if (not kinds or entry.kind in kinds)
        and (request is None or _concerns(entry, request))
        and (moment is None or datetime.fromisoformat(entry.at) >= moment)
    ][-(last or 0) :]
    if as_json:
        for entry in entries:
            typer.echo(entry.to_line())
        return
    table = Table("#", "at (UTC)", "kind", "what", "entry")
    for entry in entries:
        facts = ", ".join(f"{key} {_short(value)}" for key, value in sorted(entry.body.items()))
        table.add_row(str(entry.sequence), entry.at[:19], entry.kind, facts, entry.entry_hash[:12])
    Console().print(table if entries else "the ledger holds no such entry")


@app.command()
def verify(
    known_head: KnownHead = None,
    export: Annotated[
        Path | None, typer.Option(help="Check this exported file instead; needs neither database nor network.")
    ] = None,
) -> int:
    """Recompute the chain and name every fault; exit code 1 if there is one."""
    if export is not None:
        faults = verify_export(export, known_head=known_head)
        return _report(faults, f"{export}", export.read_bytes().count(b"\n"), head=None)
    ledger = open_services().ledger
    faults, head = ledger.verify(known_head=known_head), ledger.head()
    return _report(faults, "the ledger", len(ledger.entries()), head=head.entry_hash if head else "none")


@app.command()
def export(file: Annotated[Path, typer.Argument(help="Where to write; JSON lines, one entry each.")]) -> None:
    """Write all entries to a file that `scapre ledger verify --export FILE` checks anywhere."""
    ledger = open_services().ledger
    if file.exists():
        raise BadRequestError(f"expected a new file, found {file}, which exists; choose another or remove it")
    ledger.export(file)
    head = ledger.head()
    typer.echo(f"{len(ledger.entries())} entries written to {file}, head {head.entry_hash if head else 'none'}")


@app.command()
def upgrade() -> None:
    """Bring the database to this version's schema; every other command does so by itself."""
    engine = open_database(load_settings().ledger_url)
    before = schema_version(engine)
    Ledger(engine)
    done = "nothing to do" if before == SCHEMA_VERSION else f"schema {before or 'none'} became {SCHEMA_VERSION}"
    typer.echo(f"{done}; the ledger {'verifies' if not Ledger(engine).verify() else 'does not verify'}")


def _report(faults: list[Fault], what: str, count: int, *, head: str | None) -> int:
    for fault in faults:
        typer.echo(str(fault))
    if faults:
        typer.echo(f"{what} does not verify: {len(faults)} faults in {count} entries")
        return ExitCode.FAILED
    typer.echo(f"{what} verifies: {count} entries" + (f", head {head}" if head else ""))
    return ExitCode.OK


def _kinds(given: list[str]) -> set[str]:
    known = [str(kind) for kind in EntryKind]
    if unknown := sorted(set(given) - set(known)):
        raise BadRequestError(f"kind: expected one of {', '.join(known)}, found {unknown[0]!r}; correct it")
    return set(given)


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadRequestError(f"since: expected a day or moment such as 2026-01-05, found {text!r}") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _concerns(entry: Entry, request_id: str) -> bool:
    body = entry.body
    return body.get("request_id") == request_id or request_id in body.get("request_ids", ())


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else text[:20] + "…"
