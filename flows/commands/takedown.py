"""`scapre takedown run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.dials import DIAL_HELP, parse_dials
from flows.exit_codes import ExitCode
from flows.services import open_services

if TYPE_CHECKING:
    from flows.takedown import TakedownOutcome

_PROMOTION = {
    "promoted": "version {version} is champion",
    "refused": "champion untouched",
    "waiting": "version {version} waits for a person; champion untouched: `scapre approve {digest} --by NAME`",
    "declined": "version {version} was declined by a person; champion untouched",
}

app = typer.Typer(no_args_is_help=True, help="Unlearn the union of active requests, judge, promote what is approved.")


@app.callback()
def _group() -> None:
    """Keeps `run` a command of its own: a group with one command would swallow its name."""


@app.command()
def run(
    base: Annotated[str, typer.Option(help="Name of the base model in the object store.")] = "reference",
    method: Annotated[str, typer.Option(help="Unlearning method.")] = "scapre",
    dial: Annotated[list[str] | None, typer.Option(help=DIAL_HELP)] = None,
    withhold: Annotated[
        list[str] | None, typer.Option(help="Concept that the engine must not be told of, to measure the effect.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file instead of the default one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done; change nothing.")] = False,
) -> int:
    """Unlearn all active requests from the base model, judge the result, and promote it if the gates pass."""
    services = open_services()
    from flows.takedown import TakedownOrder, plan_run, takedown

    order = TakedownOrder(
        base=base, method=method, dials=parse_dials(dial or [], method), withheld=tuple(withhold or ()), policy=policy
    )
    plan = plan_run(services, order)
    if dry_run:
        typer.echo(f"base        {plan.base}, digest {plan.base_digest}")
        typer.echo(f"requests    {', '.join(plan.request_ids)}")
        typer.echo(f"forget      {', '.join(subject.concept for subject in plan.subjects)}")
        typer.echo(f"retain      {', '.join(plan.retain) or 'nothing named; the engine looks for neighbours'}")
        typer.echo(f"method      {plan.method}, {', '.join(f'{name} {value}' for name, value in plan.dials.items())}")
        typer.echo(f"run key     {plan.key}")
        typer.echo("dry run: nothing was changed")
        return ExitCode.OK
    return report_outcome(takedown(order))


def report_outcome(outcome: "TakedownOutcome") -> int:
    """Prints how a run ended and returns its exit code."""
    from flows.evidence import summary_lines

    if outcome.judgement is not None:
        for line in summary_lines(outcome.judgement):
            typer.echo(line)
    if outcome.is_repeated:
        typer.echo("this run was finished before; nothing was done")
    for reason in outcome.reasons:
        typer.echo(f"because     {reason}")
    typer.echo(f"verdict     {outcome.verdict}")
    typer.echo(
        f"promotion   {_PROMOTION[outcome.decision].format(version=outcome.version, digest=outcome.digest[:16])}"
    )
    typer.echo(f"report      {outcome.evidence / 'report.html'}")
    if outcome.is_void:
        return ExitCode.COULD_NOT_JUDGE
    if outcome.decision in ("waiting", "declined"):
        return ExitCode.WAITING if outcome.decision == "waiting" else ExitCode.FAILED
    return {"passed": ExitCode.OK, "failed": ExitCode.FAILED}.get(outcome.verdict, ExitCode.INCONCLUSIVE)
