"""`scapre rollback` and `scapre registry …`: who is champion, whether it is what was approved, and the way back."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.exit_codes import ExitCode
from flows.services import open_services

app = typer.Typer(no_args_is_help=True, help="The champion and its line: show, audit, repair.")


def rollback(
    reason: Annotated[str, typer.Option(help="Why; it stays in the ledger for good.")],
    by: Annotated[str, typer.Option("--by", help="Who decides, by name; kept beside the ledger, not in it.")],
    reopen: Annotated[
        bool, typer.Option("--reopen", help="Accept that active requests are no longer honoured until promoted again.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")] = False,
) -> int:
    """Make the previous champion the champion again. What was rolled back is promoted again only by a person."""
    from flows.rollback import plan_rollback, require_reasoned, roll_back

    services = open_services()
    if dry_run:
        require_reasoned(reason, by=by)
        left, restored, lost = plan_rollback(services, reopens=reopen)
        typer.echo(f"would make version {restored.version} champion in place of version {left.version}")
        typer.echo(f"would no longer honour: {', '.join(lost) or 'nothing'}")
        typer.echo("dry run: nothing was changed")
        return ExitCode.OK
    entry, is_new = roll_back(services, services.open_registry(), reason=reason, by=by, reopens=reopen)
    done = "is champion again" if is_new else "was made champion by this rollback before; nothing changed"
    typer.echo(f"version {entry.body['version']}, digest {entry.body['digest'][:16]}, {done}")
    if entry.body["reopened"]:
        typer.echo(f"no longer honoured: {', '.join(entry.body['reopened'])}")
    return ExitCode.OK


@app.command()
def show() -> None:
    """Show the line of champions, newest first, as the ledger has it, and where the aliases point."""
    from flows.succession import read_succession

    services = open_services()
    succession, aliases = read_succession(services), services.open_registry().aliases()
    table = Table("version", "standing", "digest", "evidence", "requests", "promoted by entry")
    for one in reversed(succession.line):
        standing, requests = succession.standing_of(one.version), str(len(one.request_ids))
        table.add_row(one.version, standing, one.digest[:16], one.evidence[:16], requests, one.entry_hash[:16])
    console = Console()
    console.print(table if succession.line else "no champion yet; `scapre takedown run` makes one")
    console.print(
        "aliases: " + (", ".join(f"{alias} → {version}" for alias, version in sorted(aliases.items())) or "none")
    )


@app.command()
def audit() -> int:
    """Read every stored byte of the champion and compare it with what was approved; exit code 1 if anything differs."""
    from flows.audit import audit_registry

    services = open_services()
    differences = audit_registry(services, services.open_registry())
    for difference in differences:
        typer.echo(difference)
    typer.echo(
        f"the registry differs from the ledger: {len(differences)} differences" if differences else "no difference"
    )
    return ExitCode.FAILED if differences else ExitCode.OK


@app.command()
def repair(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")] = False,
) -> int:
    """Make aliases, tags and the store's pointer say again what the ledger says. Stored models are never changed."""
    from flows.promotion import repair as repair_registry
    from flows.succession import read_succession

    services = open_services()
    champion = read_succession(services).champion
    if dry_run:
        typer.echo(f"would point the registry at version {champion.version if champion else 'none'}")
        typer.echo("dry run: nothing was changed")
        return ExitCode.OK
    repair_registry(services, services.open_registry())
    typer.echo(f"aliases, tags and pointer follow the ledger: champion {champion.version if champion else 'none'}")
    return ExitCode.OK
