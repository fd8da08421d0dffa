"""`scapre status`: one screen."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.services import open_services
from flows.status import Status, read_status

IDS_SHOWN = 3
DUE_SHOWN = 8


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object, for machines.")] = False,
) -> None:
    """Show champion, requests, deadlines near or missed, last verdicts, open incidents and what waits for whom."""
    found = read_status(open_services())
    if as_json:
        typer.echo(json.dumps(found.describe(), indent=2))
        return
    table = Table(show_header=False, box=None)
    for what, said in _rows(found):
        table.add_row(what, said)
    Console().print(table)


def _rows(found: Status) -> Iterator[tuple[str, str]]:
    yield "champion", _model(found.champion)
    yield "candidate", _model(found.candidate)
    states = ", ".join(f"{count} {state}" for state, count in found.states.items())
    yield "requests", f"{found.active} active, {found.concepts} concepts" + (f"; {states}" if states else "")
    for number, due in enumerate(found.due[:DUE_SHOWN]):
        yield "" if number else "deadlines", f"{due.due_at[:16]}  {due.state:<6}  {due.name} of {due.request_id}"
    if len(found.due) > DUE_SHOWN:
        yield "", f"and {len(found.due) - DUE_SHOWN} more; see `scapre request list`"
    if not found.due:
        yield "deadlines", "none near or missed"
    for number, one in enumerate(found.waiting):
        shown = ", ".join(one.request_ids[:IDS_SHOWN])
        more = f" and {len(one.request_ids) - IDS_SHOWN} more" if len(one.request_ids) > IDS_SHOWN else ""
        yield "" if number else "waits for", f"{one.whom}: {one.what} ({shown}{more})"
    for number, said in enumerate(found.verdicts):
        yield (
            "" if number else "verdicts",
            f"{said.at[:16]}  {said.verdict:<12}  {said.kind}, digest {said.digest[:16]}",
        )
    for number, incident in enumerate(found.incidents):
        yield "" if number else "incidents", f"{incident['incident_id']}, open since {incident['opened_at'][:16]}"
    if not found.incidents:
        yield "incidents", "none open"
    whole = f"verifies, {found.entries} entries"
    yield "ledger", whole if not found.faults else f"{found.faults} faults; see `scapre ledger verify`"


def _model(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return "none"
    since = f", {facts['requests']} requests, since {facts['since'][:16]}" if "since" in facts else ""
    return f"version {facts['version']}, digest {facts['digest'][:16]}{since}"
