"""`scapre compliance …` and `scapre incident …`: what is in production, judged anew."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.exit_codes import ExitCode
from flows.services import open_services

if TYPE_CHECKING:
    from flows.compliance import ComplianceOutcome

app = typer.Typer(no_args_is_help=True, help="Judge the champion anew against every active request.")
incident_app = typer.Typer(no_args_is_help=True, help="Incidents: list, close.")


@app.callback()
def _group() -> None:
    """Keeps `run` a command of its own: a group with one command would swallow its name."""


@app.command()
def run(
    base: Annotated[str, typer.Option(help="Name of the base model in the object store.")] = "reference",
    policy: Annotated[Path | None, typer.Option(help="Policy file instead of the default one.")] = None,
    max_pictures: Annotated[
        int | None, typer.Option(min=1, help="Ask for at most so many pictures; requests seen longest ago go first.")
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Draw for about so long at most, at this machine's pace.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be asked; change nothing.")] = False,
) -> int:
    """Judge the model in production anew, with today's policy, packs and detectors; open an incident on a regression.

    The same champion, question and day is judged once. Exit codes: 0 passed, 1 failed, 2 inconclusive, 3 could not
    judge (a control failed, or the stored model is not what was promoted).
    """
    from flows.compliance_plan import ComplianceOrder, preview

    order = ComplianceOrder(base=base, policy=policy, max_pictures=max_pictures, max_minutes=max_minutes)
    if dry_run:
        for line in preview(open_services(), order):
            typer.echo(line)
        typer.echo("dry run: nothing was changed")
        return ExitCode.OK
    from flows.compliance import compliance

    return _report(compliance(order))


def _report(outcome: "ComplianceOutcome") -> int:
    if outcome.is_repeated:
        typer.echo("the same question was answered today already; nothing was done")
    typer.echo(f"judged      {', '.join(outcome.judged) or 'nothing'}")
    if outcome.pending:
        typer.echo(f"pending     {', '.join(outcome.pending)}: active, but the champion was not made for it yet")
    if outcome.left_out:
        typer.echo(f"left out    {', '.join(outcome.left_out)}: the budget does not hold it; it comes first next time")
    for reason in outcome.reasons:
        typer.echo(f"because     {reason}")
    for regression in outcome.regressions:
        typer.echo(f"regression  {regression}")
    if outcome.incident:
        typer.echo(f"incident    {outcome.incident}")
    typer.echo(f"verdict     {outcome.verdict}")
    if outcome.report:
        typer.echo(f"report      {outcome.report}")
    if outcome.is_void:
        return ExitCode.COULD_NOT_JUDGE
    return {"passed": ExitCode.OK, "failed": ExitCode.FAILED}.get(outcome.verdict, ExitCode.INCONCLUSIVE)


@incident_app.command("list")
def list_incidents(
    everything: Annotated[bool, typer.Option("--all", help="Also the closed ones.")] = False,
) -> None:
    """List incidents, the open ones unless told otherwise."""
    from flows import incidents

    table = Table("incident", "opened (UTC)", "model", "requests", "why", "closed")
    found = [each for each in incidents.list_incidents(open_services()) if everything or each.is_open]
    for each in found:
        closed = "" if each.is_open else f"{(each.closed_at or '')[:19]} by {each.closed_by}: {each.closing_reason}"
        table.add_row(
            each.incident_id,
            each.opened_at[:19],
            each.digest[:12],
            ", ".join(each.request_ids),
            "\n".join(each.reasons),
            closed,
        )
    Console().print(table if found else "no incident is open" if not everything else "there were no incidents")


@incident_app.command()
def close(
    incident_id: Annotated[str, typer.Argument(help="For example inc-0123456789abcdef.")],
    by: Annotated[str, typer.Option(help="Who closes it: a role or a pseudonym, since the ledger keeps it for good.")],
    reason: Annotated[str, typer.Option(help="What was done about it; kept for good as well.")],
) -> None:
    """Close an incident with a recorded reason."""
    from flows import incidents

    services = open_services()
    was_open = incidents.close_incident(services, services.open_registry(), incident_id, by=by, reason=reason)
    typer.echo(f"{incident_id} {'closed' if was_open else 'was closed before; nothing changed'}")
