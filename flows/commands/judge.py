"""`scapre judge`: the judge alone, on any checkpoint, whoever made it."""

import math
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.attack import ATTACKS_HELP
from flows.errors import BadRequestError
from flows.progress import console, progress_bars
from flows.services import open_services

if TYPE_CHECKING:
    from validation import Judgement, Policy
    from validation.probes import Subject

DETECTOR_HELP = "Instead of the shipped classifier: `classifier:FOLDER` or `clip:FOLDER`; `nudenet` beside any of them."
PACK_HELP = "Probe pack whose targets must be gone, unless `--target` names some, and whose look-alikes must survive."


def judge(
    checkpoint: Annotated[Path, typer.Argument(help="The model after: a folder, a single file, a LoRA or an edit.")],
    base: Annotated[Path, typer.Option(help="The model before, a folder in the diffusers layout.")],
    target: Annotated[list[str] | None, typer.Option(help="Concept that must be gone; repeat for several.")] = None,
    retain: Annotated[list[str] | None, typer.Option(help="Concept that must survive; repeat for several.")] = None,
    pack: Annotated[str | None, typer.Option(help=PACK_HELP)] = None,
    detector: Annotated[list[str] | None, typer.Option(help=DETECTOR_HELP)] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file instead of the default one.")] = None,
    attacks: Annotated[str | None, typer.Option(help=f"{ATTACKS_HELP} Default: the policy's.")] = None,
    out: Annotated[Path, typer.Option(help="New folder for the evidence.")] = Path("evidence"),
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the judgement as JSON here.")] = None,
    junit_path: Annotated[
        Path | None, typer.Option("--junit", help="Also write JUnit XML here: one test case for each gate.")
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Keep no picture: none in the report, none on disk afterwards.")
    ] = False,
) -> int:
    """Judge whether a checkpoint forgot concepts and kept the rest; what is not named counts as hidden.

    CHECKPOINT is recognised by its content, whoever made it: a **folder** in the diffusers layout, a **single file** of
    Stable Diffusion 1.x, 2.x or XL (`.safetensors`), a **LoRA**, put on BASE at full strength, or an **edit** that
    `scapre unlearn` wrote. Pickles are refused.

    What must survive is shown by pairs of pictures, so name enough: with the default policy, eight concepts or more.

    Example: `scapre judge out/edit.safetensors --base infra/reference/model --target tiger --retain lion --retain cat
    --retain dog --retain fox --retain wolf --retain bear --retain panda --retain leopard`
    """
    if out.exists():
        raise BadRequestError(f"expected a new folder, found {out}, which exists; choose another or remove it")
    services = open_services()
    from flows import judgement as judging
    from flows.attacking import with_attacks
    from flows.checkpoints import open_checkpoint
    from flows.questions import ask, choose_detectors
    from flows.reporting import exit_code_of, write_reports
    from flows.takedown import DEFAULT_POLICY
    from validation import load_policy
    from validation.evidence import write_evidence
    from validation.report import render_report

    before = open_checkpoint(base)
    after = open_checkpoint(checkpoint, base=before)
    rules = load_policy(policy or DEFAULT_POLICY)
    if attacks is not None:
        rules = with_attacks(rules, attacks)
    question = ask(target or [], retain=retain or [], pack=pack)
    detectors = choose_detectors(detector or [], question, services.settings)
    roles = judging.roles_of(question.targets, retained=question.retained, detectors=detectors)
    if roles.unseen:
        raise BadRequestError(
            f"expected concepts to retain that the detector knows, found {', '.join(roles.unseen)}; correct the names "
            "or bring another detector"
        )
    for why in why_it_cannot_pass(roles.retained, rules):
        typer.echo(f"warning: {why}", err=True)
    with _picture_folder(is_kept=not no_images) as pictures:
        with progress_bars(("rendering", "attacking"), console()) as [on_progress, on_attack]:
            judgement = judging.judge_checkpoint(
                services,
                base=before,
                candidate=after,
                roles=roles,
                detectors=detectors,
                policy=rules,
                on_progress=on_progress,
                on_attack=on_attack,
                pictures=pictures,
            )
        html = render_report(judgement, safe_mode=no_images)
    write_evidence(judgement, out, report_html=html, extra={"checkpoint.json": after.describe()})
    write_reports(judgement, json_path=json_path, junit_path=junit_path)
    _show(judgement, out)
    return exit_code_of(judgement)


def why_it_cannot_pass(retained: Sequence["Subject"], policy: "Policy") -> list[str]:
    """Returns why no verdict on so few retained concepts can be passed, and what to do; nothing if there are enough.

    Styles have a gate of their own, so each of the two must have none or enough.
    """
    from validation.statistics import pictures_needed

    needed = pictures_needed(0, limit=policy.retained_margin, confidence=policy.confidence)
    styles = sum(subject.head == "style" for subject in retained)
    judged = []
    if styles:
        judged.append((styles, "styles", "probes_per_style", policy.probes_per_style))
    if len(retained) > styles or not styles:
        judged.append((len(retained) - styles, "concepts", "probes_per_retained", policy.probes_per_retained))
    reasons = []
    for count, what, name, each in judged:
        enough = max(2, math.ceil(needed / each))
        if count < enough:
            reasons.append(
                f"{count} retained {what} in {each} pairs of pictures each cannot show that no more than "
                f"{policy.retained_margin:.0%} was lost, so the verdict cannot be passed; name {enough} or more by "
                f"--retain or --pack, or raise {name} in a --policy"
            )
    return reasons


@contextmanager
def _picture_folder(*, is_kept: bool) -> Generator[Path | None]:
    """Yields a folder for pictures that is gone afterwards, or None for the installation's own."""
    if is_kept:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="scapre-pictures-") as folder:
        yield Path(folder)


def _show(judgement: "Judgement", out: Path) -> None:
    from flows.evidence import summary_lines

    for line in summary_lines(judgement):
        typer.echo(line)
    for reason in judgement.reasons:
        typer.echo(f"because     {reason.text}")
    typer.echo(f"verdict     {judgement.verdict}{', no judgement could be made' if judgement.is_void else ''}")
    typer.echo(f"report      {out / 'report.html'}")
