"""`scapre approve`, `scapre decline` and `scapre approvals`: a person's yes or no to a candidate that passed."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows import decisions
from flows.exit_codes import ExitCode
from flows.services import open_services

_Digest = Annotated[str, typer.Argument(help="Digest of the candidate; its first 8 digits or more suffice.")]
_By = Annotated[str, typer.Option("--by", help="Who decides, by name; kept beside the ledger, not in it.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]


def approvals() -> None:
    """List the candidates that wait for a person, with the digest to approve or decline."""
    services = open_services()
    waiting = decisions.waiting_candidates(services)
    table = Table("digest", "judged (UTC)", "requests", "evidence", "note")
    for candidate in waiting:
        body = candidate.judged.body
        note = "was rolled back" if candidate.rollback else "an approval ran out" if candidate.decisions else ""
        requests, evidence = str(len(decisions.requests_of(services, candidate.judged))), body["evidence"][:16]
        table.add_row(body["digest"][:16], candidate.judged.at[:19], requests, evidence, note)
    Console().print(table if waiting else "nothing waits for approval")


def approve(
    digest: _Digest,
    by: _By,
    reason: Annotated[str, typer.Option(help="Needed for what was declined or rolled back before.")] = "",
    dry_run: _DryRun = False,
) -> int:
    """Approve a candidate that passed, and promote it. The approver must be none of the requesters."""
    services = open_services()
    judged = decisions.find_judged(services, digest)
    if dry_run:
        decisions.require_independent(services, judged, by=by)
        decisions.require_approvable(services, decisions.find_candidate(services, judged), reason=reason)
        typer.echo(f"would approve digest {judged.body['digest']} with evidence {judged.body['evidence']}")
        typer.echo("would make it the champion; dry run: nothing was changed")
        return ExitCode.OK
    from flows.approval import ApprovalOrder
    from flows.approval import approve as approve_flow

    settled = approve_flow(ApprovalOrder(digest=judged.body["digest"], by=by, reason=reason))
    done = "was champion before; nothing changed" if settled.is_repeated else "is champion"
    typer.echo(f"version {settled.version}, digest {judged.body['digest'][:16]}, {done}")
    return ExitCode.OK


def decline(
    digest: _Digest,
    by: _By,
    reason: Annotated[str, typer.Option(help="Why; it stays in the ledger for good.")],
    dry_run: _DryRun = False,
) -> int:
    """Decline a candidate that passed; the champion stays."""
    services = open_services()
    judged = decisions.find_judged(services, digest)
    short = judged.body["digest"][:16]
    if dry_run:
        decisions.require_declinable(decisions.find_candidate(services, judged), by=by, reason=reason)
        typer.echo(f"would decline digest {short}; dry run: nothing was changed")
        return ExitCode.OK
    _, is_new = decisions.decline(services, judged, by=by, reason=reason)
    typer.echo(f"digest {short} {'declined' if is_new else 'was declined before; nothing changed'}")
    return ExitCode.OK
