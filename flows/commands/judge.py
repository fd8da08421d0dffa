"""`scapre judge`: the judge alone, on any checkpoint, whoever made it."""

from pathlib import Path
from typing import Annotated

import typer

from flows.errors import BadRequestError
from flows.exit_codes import ExitCode
from flows.progress import console, progress_bar
from flows.services import open_services

DETECTOR_HELP = "Instead of the shipped classifier: `classifier:FOLDER` or `clip:FOLDER`; `nudenet` beside any of them."
PACK_HELP = "Probe pack whose targets must be gone, unless `--target` names some, and whose look-alikes must survive."


def judge(
    checkpoint: Annotated[Path, typer.Argument(help="The model after, in the diffusers layout.")],
    base: Annotated[Path, typer.Option(help="The model before, in the diffusers layout.")],
    target: Annotated[list[str] | None, typer.Option(help="Concept that must be gone; repeat for several.")] = None,
    retain: Annotated[list[str] | None, typer.Option(help="Concept that must survive; repeat for several.")] = None,
    pack: Annotated[str | None, typer.Option(help=PACK_HELP)] = None,
    detector: Annotated[list[str] | None, typer.Option(help=DETECTOR_HELP)] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file instead of the default one.")] = None,
    out: Annotated[Path, typer.Option(help="New folder for the evidence.")] = Path("evidence"),
) -> int:
    """Judge whether a checkpoint forgot concepts and kept the rest; what is not named counts as hidden."""
    if out.exists():
        raise BadRequestError(f"expected a new folder, found {out}, which exists; choose another or remove it")
    services = open_services()
    import scapre
    from flows import judgement as judging
    from flows.evidence import summary_lines
    from flows.questions import ask, choose_detectors
    from flows.takedown import DEFAULT_POLICY
    from infra.digests import sha256_bytes
    from infra.manifests import Manifest
    from validation import load_policy
    from validation.evidence import write_evidence
    from validation.report import render_report

    for folder in (checkpoint, base):
        scapre.inspect_checkpoint(folder)
    rules = load_policy(policy or DEFAULT_POLICY)
    question = ask(target or [], retain=retain or [], pack=pack)
    detectors = choose_detectors(detector or [], question, services.settings)
    roles = judging.roles_of(question.targets, retained=question.retained, detectors=detectors)
    if roles.unseen:
        raise BadRequestError(
            f"expected concepts to retain that the detector knows, found {', '.join(roles.unseen)}; correct the names "
            "or bring another detector"
        )
    digests = [sha256_bytes(Manifest.of_directory(folder).to_json()) for folder in (base, checkpoint)]
    with progress_bar("rendering", console()) as on_progress:
        judgement = judging.judge_checkpoint(
            services,
            base=(base, digests[0]),
            candidate=(checkpoint, digests[1]),
            roles=roles,
            detectors=detectors,
            policy=rules,
            integrity=judging.UNKNOWN_MAKER,
            data_docs=None,
            on_progress=on_progress,
        )
    write_evidence(judgement, out, report_html=render_report(judgement), data_docs=None, extra={})
    for line in summary_lines(judgement):
        typer.echo(line)
    for reason in judgement.reasons:
        typer.echo(f"because     {reason.text}")
    typer.echo(f"verdict     {judgement.verdict}")
    typer.echo(f"report      {out / 'report.html'}")
    if judgement.is_void:
        return ExitCode.COULD_NOT_JUDGE
    return {"passed": ExitCode.OK, "failed": ExitCode.FAILED}.get(judgement.verdict, ExitCode.INCONCLUSIVE)
