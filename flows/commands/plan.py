"""`scapre plan`: what the next run would do, and how much more the model takes."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.commands.dials import DIAL_HELP, parse_dials
from flows.commands.tables import table_of_risks, table_of_targets
from flows.progress import QUIET_SECONDS, progress_bars
from flows.progress import console as people
from flows.services import open_services

if TYPE_CHECKING:
    from flows.outlook import Outlook


def plan(
    base: Annotated[str, typer.Option(help="Name of the base model in the object store.")] = "reference",
    method: Annotated[str, typer.Option(help="Unlearning method.")] = "scapre",
    dial: Annotated[list[str] | None, typer.Option(help=DIAL_HELP)] = None,
    withhold: Annotated[list[str] | None, typer.Option(help="Concept that the engine must not be told of.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file instead of the default one.")] = None,
    more: Annotated[list[int] | None, typer.Option(min=0, help="Point of the capacity curve; repeat.")] = None,
    curve: Annotated[bool, typer.Option("--curve/--no-curve", help="Solve the capacity curve.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object, for machines.")] = False,
) -> None:
    """Say what the next run would do: requests, concepts, names at risk, time; and how many more concepts fit.

    Text only, but for a batch of pictures to measure the pace where no earlier run tells it. Nothing is changed. The
    capacity curve is a prediction: the engine solves with more concepts, and what that means for pictures is read off
    measurements of the same base.
    """
    services = open_services()
    from flows.outlook import look_ahead
    from flows.takedown import TakedownOrder

    order = TakedownOrder(
        base=base, method=method, dials=parse_dials(dial or [], method), withheld=tuple(withhold or ()), policy=policy
    )
    with progress_bars(("reading text", "capacity curve"), people(), after=QUIET_SECONDS) as [on_read, on_progress]:
        found = look_ahead(
            services, order, more=tuple(more or ()), with_curve=curve, on_progress=on_progress, on_read=on_read
        )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
        return
    _show(found, Console())


def _show(found: "Outlook", console: Console) -> None:
    facts = Table(show_header=False, box=None)
    facts.add_row("base", f"{found.base}, digest {found.base_digest[:16]}")
    facts.add_row("requests", f"{len(found.request_ids)} in one run, {len(found.queued)} of them new")
    facts.add_row("given back", ", ".join(found.given_back) or "none")
    facts.add_row(
        "run", "judged before: nothing would be made or drawn" if found.is_finished else f"key {found.key[:16]}"
    )
    time = found.forecast
    solving = f"{found.solve_seconds:.0f} s, measured just now" if found.solve_seconds else "not measured"
    minutes, each = time.drawing_seconds / 60, time.seconds_per_picture
    facts.add_row("solving", solving)
    facts.add_row("drawing", f"at most {time.pictures} pictures in {minutes:.0f} min, {each:.2f} s each")
    facts.add_row("", f"measured by {time.measured_by}")
    console.print(facts)
    console.print(table_of_targets(found.anchors), table_of_risks(found.at_risk))
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if found.curve is not None:
        _show_curve(found.curve, console)


def _show_curve(curve: Any, console: Console) -> None:
    table = Table(
        "more concepts",
        "retained responses move",
        "neighbours move",
        "named lost",
        "unnamed lost",
        title="capacity curve, a prediction",
    )
    for point in curve.points:
        losses = (f"{loss:.1%}" if loss is not None else "?" for loss in (point.retained_loss, point.hidden_loss))
        table.add_row(str(point.more), f"{point.response:.1%}", f"{point.neighbour_response:.2f}", *losses)
    console.print(table)
    none = "not even this run" if curve.is_predicted else "nothing can be said, not even of this run"
    fits = none if curve.fits is None else f"{curve.fits} more concepts"
    console.print(f"predicted to fit: {fits}; {curve.ended_by}", highlight=False, soft_wrap=True)
    based = "; ".join(one.task for one in curve.measured) or "nothing: no run on this base was measured yet"
    console.print(f"predicted from: {based}. Only a judgement decides.", highlight=False, soft_wrap=True)
