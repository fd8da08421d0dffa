"""`scapre gate`: may this checkpoint ship?"""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from flows.commands.dials import DIAL_HELP, parse_dials
from flows.commands.judge import DETECTOR_HELP
from flows.errors import BadRequestError
from flows.exit_codes import ExitCode
from flows.services import open_services


def gate(
    checkpoint: Annotated[Path, typer.Argument(help="A folder, a single file, a LoRA or an edit, whoever made it.")],
    base: Annotated[
        str, typer.Option(help="The model before: name of a base in the object store, or a folder.")
    ] = "reference",
    policy: Annotated[Path | None, typer.Option(help="Policy file instead of the default one.")] = None,
    detector: Annotated[list[str] | None, typer.Option(help=DETECTOR_HELP)] = None,
    unlearn: Annotated[
        bool, typer.Option("--unlearn", help="CHECKPOINT is a new base: unlearn the ledger from it, judge the result.")
    ] = False,
    method: Annotated[str | None, typer.Option(help="With --unlearn: unlearning method instead of scapre.")] = None,
    dial: Annotated[list[str] | None, typer.Option(help=DIAL_HELP)] = None,
    out: Annotated[Path | None, typer.Option(help="With --unlearn: new folder for the result, if it passes.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the judgement as JSON here.")] = None,
    junit_path: Annotated[
        Path | None, typer.Option("--junit", help="Also write JUnit XML here: one test case for each gate.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be asked; draw nothing.")] = False,
) -> int:
    """Judge any checkpoint against every active takedown request: the last step before a release.

    Exit codes: 0 passed, 1 failed, 2 inconclusive, 3 could not judge (a control failed, or no request is active).
    A second run on the same bytes finds the pictures and draws nothing.

    Example: `scapre gate release/ --base reference --json gate.json --junit gate.xml`
    """
    from flows.release_gate import ReleaseOrder, describe, release_gate

    try:
        order = ReleaseOrder(
            checkpoint=checkpoint,
            base=base,
            policy=policy,
            detectors=tuple(detector or ()),
            unlearn=unlearn,
            dials=parse_dials(dial or [], method or ReleaseOrder.model_fields["method"].default),
            out=out,
            **({} if method is None else {"method": method}),
        )
    except ValidationError as error:
        said = "; ".join(str(each["msg"]).removeprefix("Value error, ") for each in error.errors())
        raise BadRequestError(f"{said}; see `scapre gate --help`") from error
    if dry_run:
        for line in describe(open_services(), order):
            typer.echo(line)
        typer.echo("dry run: nothing was changed")
        return ExitCode.OK
    from flows.evidence import summary_lines
    from flows.reporting import exit_code_of, write_reports

    outcome = release_gate(order)
    write_reports(outcome.judgement, json_path=json_path, junit_path=junit_path)
    for line in summary_lines(outcome.judgement):
        typer.echo(line)
    for reason in outcome.judgement.reasons:
        typer.echo(f"because     {reason.text}")
    typer.echo(f"verdict     {outcome.judgement.verdict}")
    typer.echo(f"judged      digest {outcome.digest} against {', '.join(outcome.request_ids)}")
    if order.out is not None:
        typer.echo(f"written     {outcome.out or 'nothing: it did not pass'}")
    typer.echo(f"report      {outcome.evidence.folder / 'report.html'}")
    return exit_code_of(outcome.judgement)
