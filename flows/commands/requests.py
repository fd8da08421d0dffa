"""`scapre request …` and `scapre base …`: what to forget, and from which model."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from flows import desk, intake
from flows.case_states import Event
from flows.cases import Case, cases, find_case
from flows.requests import load_request
from flows.services import open_services

app = typer.Typer(no_args_is_help=True, help="Takedown requests: from the first look to the last.")
base_app = typer.Typer(no_args_is_help=True, help="Base models in the object store.")
_EXAMPLE = Path(__file__).parent.parent / "demo_request.yaml"

RequestId = Annotated[str, typer.Argument(help="For example req-0123456789abcdef.")]
By = Annotated[str, typer.Option(help="Who decides; stays on the record for good.")]
Reason = Annotated[str, typer.Option(help="Why; stays on the record for good, so name neither requester nor concept.")]


@app.command()
def add(file: Annotated[Path, typer.Argument(help="A YAML or JSON file; see `scapre request template`.")]) -> None:
    """Record a takedown request. The same request twice is one request."""
    request = load_request(file)
    services = open_services()
    request_id, is_new = intake.add_request(services, request)
    case = find_case(services, request_id)
    typer.echo(f"{request_id} {'added' if is_new else 'was there already; nothing changed'}, {case.state}")
    if case.lacks:
        typer.echo(f"lacks what {case.regime} asks for: {', '.join(case.lacks)}")


@app.command("list")
def list_requests(
    state: Annotated[list[str] | None, typer.Option(help="Only cases in this state; repeat for several.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")] = False,
) -> None:
    """List all requests and where they stand. Concepts are not shown; `scapre request show ID` does."""
    found = [case for case in cases(open_services()).values() if not state or case.state in state]
    if as_json:
        for case in found:
            typer.echo(json.dumps(describe_case(case)))
        return
    table = Table(Column("request", no_wrap=True), "state", "regime", "concepts", "next deadline")
    now = datetime.now(UTC)
    for case in found:
        table.add_row(
            case.request_id,
            case.state,
            case.regime,
            str(case.concepts),
            next_deadline(case, now),
        )
    Console().print(table if found else "no requests; add one with `scapre request add FILE`")


@app.command()
def show(request_id: RequestId) -> None:
    """Print one request and its case as JSON, the requester included: mind who reads over your shoulder."""
    services = open_services()
    case = find_case(services, request_id)
    request = intake.read_request(services, case).model_dump(mode="json", exclude_none=True) if case.commitments else {}
    typer.echo(json.dumps({**request, "case": describe_case(case)}, indent=2, ensure_ascii=False))


@app.command()
def triage(request_id: RequestId, by: By, reason: Reason = "") -> None:
    """Note that somebody has looked at a request; meets the deadline for acknowledging it."""
    _decide(request_id, Event.TRIAGE, by=by, reason=reason)


@app.command()
def validate(request_id: RequestId, by: By, reason: Reason = "") -> None:
    """Find a request valid: from now on every run unlearns it."""
    _decide(request_id, Event.VALIDATE, by=by, reason=reason)


@app.command()
def reject(request_id: RequestId, by: By, reason: Reason) -> None:
    """Find a request not valid, with the reason."""
    _decide(request_id, Event.REJECT, by=by, reason=reason)


@app.command()
def withdraw(request_id: RequestId, by: By = "desk", reason: Reason = "") -> None:
    """Take a request out of force; the next run solves from the base without it."""
    _decide(request_id, Event.WITHDRAW, by=by, reason=reason)


@app.command("counter-notice")
def counter_notice(request_id: RequestId, by: By, reason: Reason) -> None:
    """Note that somebody contests a request; it stays in force until it is upheld or reinstated."""
    _decide(request_id, Event.COUNTER_NOTICE, by=by, reason=reason)


@app.command()
def uphold(request_id: RequestId, by: By, reason: Reason) -> None:
    """Keep a contested request in force, for example because the requester has gone to court."""
    _decide(request_id, Event.UPHOLD, by=by, reason=reason)


@app.command()
def reinstate(request_id: RequestId, by: By, reason: Reason) -> None:
    """Give back what a contested request took down; the next run solves without it."""
    _decide(request_id, Event.REINSTATE, by=by, reason=reason)


@app.command()
def close(request_id: RequestId, by: By, reason: Reason = "") -> None:
    """End a confirmed case. It stays in force; personal data is erased when the regime's time is over."""
    _decide(request_id, Event.CLOSE, by=by, reason=reason)


@app.command()
def pause(request_id: RequestId, by: By, reason: Reason) -> None:
    """Stop the clock of a case, for example until the requester answers."""
    _say(request_id, "pause", desk.pause(open_services(), request_id, by=by, reason=reason))


@app.command()
def resume(request_id: RequestId, by: By, reason: Reason = "") -> None:
    """Let the clock of a case go on."""
    _say(request_id, "resume", desk.resume(open_services(), request_id, by=by, reason=reason))


@app.command()
def extend(request_id: RequestId, by: By, reason: Reason) -> None:
    """Move decision and effect by the regime's extension, once, before the decision is due."""
    _say(request_id, "extend", desk.extend(open_services(), request_id, by=by, reason=reason))


@app.command()
def inbox() -> None:
    """Record every request dropped as a file under `inbox/` in the object store.

    What was recorded is moved to `inbox-taken/`; what is no request to `inbox-refused/`, with the reason beside it.
    """
    from flows.inbox import take_in

    deliveries = take_in(open_services())
    for one in deliveries:
        said = f"refused: {one.reason}" if one.request_id is None else one.request_id
        typer.echo(f"{one.key}: {said}{'' if one.is_new or one.request_id is None else ', was there already'}")
    if not deliveries:
        typer.echo("the inbox is empty")


@app.command()
def erase(
    due: Annotated[bool, typer.Option("--due", help="Erase what the table of deadlines says is due.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be erased; change nothing.")] = False,
) -> None:
    """Erase the personal data of cases that ended long enough ago; the ledger still verifies.

    What a request in force still needs, the concepts, stays; of a rejected, withdrawn or reinstated one nothing does.
    """
    from flows.erasure import due_cases, erase_due

    services = open_services()
    if dry_run or not due:
        waiting = due_cases(services, now=datetime.now(UTC))
        typer.echo("\n".join(case.request_id for case in waiting) or "nothing is due")
        typer.echo("nothing was erased; give --due to erase what is listed")
        return
    erased = erase_due(services)
    typer.echo("\n".join(f"{request_id} erased" for request_id in erased) or "nothing is due")


@app.command()
def template(
    regime: Annotated[str | None, typer.Option(help="An example for a row of the table of deadlines.")] = None,
) -> None:
    """Print a complete example of a request file."""
    if regime is None:
        typer.echo(_EXAMPLE.read_text(encoding="utf-8"), nl=False)
        return
    from flows.deadlines import load_deadlines
    from flows.templates import template as template_of
    from infra.settings import load_settings

    typer.echo(template_of(load_deadlines(load_settings().deadlines), regime), nl=False)


@base_app.command("add")
def add_base(
    name: Annotated[str, typer.Argument(help="How requests name it.")],
    folder: Annotated[Path, typer.Argument(help="A checkpoint in the diffusers layout, safetensors only.")],
) -> None:
    """Put a base model into the object store."""
    from flows.candidate import register_base

    typer.echo(f"{name} {register_base(open_services(), name, folder)}")


def next_deadline(case: Case, now: datetime) -> str:
    """Returns the first deadline that is not met, and how it stands."""
    for deadline in case.deadlines:
        if deadline.met_at is None:
            return f"{deadline.name} {deadline.due_at:%Y-%m-%d %H:%M} {deadline.state(now)}"
    return ""


def describe_case(case: Case) -> dict[str, object]:
    """Returns a case as JSON-able values, without personal data."""
    now = datetime.now(UTC)
    return {
        "request_id": case.request_id,
        "state": case.state,
        "regime": case.regime,
        "ground": case.ground,
        "jurisdiction": case.jurisdiction,
        "base": case.base,
        "concepts": case.concepts,
        "received_at": case.received_at.isoformat(),
        "channel": case.channel,
        "lacks": list(case.lacks),
        "is_active": case.is_active,
        "is_paused": case.is_paused,
        "is_extended": case.is_extended,
        "is_erased": case.is_erased,
        "candidate": case.digest,
        "verdict": case.verdict,
        "deadlines": [
            {"name": deadline.name, "due_at": deadline.due_at.isoformat(), "state": deadline.state(now)}
            for deadline in case.deadlines
        ],
        "history": [
            {"entry": s.sequence, "kind": s.kind, "at": s.at.isoformat(), "who": s.who, "state": s.state}
            | ({"reason": s.reason} if s.reason else {})
            for s in case.history
        ],
    }


def _decide(request_id: str, event: Event, *, by: str, reason: str) -> None:
    services = open_services()
    is_new = desk.decide(services, request_id, event, by=by, reason=reason)
    _say(request_id, event, is_new, state=find_case(services, request_id).state)


def _say(request_id: str, what: str, is_new: bool, *, state: str | None = None) -> None:
    done = "recorded" if is_new else "was done before; nothing changed"
    typer.echo(f"{request_id} {what}: {done}" + (f", now {state}" if state else ""))
