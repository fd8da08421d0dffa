"""`scapre benchmark`: every method on the reference world, several seeds, as a table."""

import itertools
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.commands.dials import DIAL_HELP, parse_dials
from flows.errors import BadRequestError

if TYPE_CHECKING:
    from flows.benchmark import Contestant
    from flows.scores import Row

# how the default method reads text, for methods that as published make targets nothing and keep only what is named
SAME_TEXT: dict[str, float | str] = {"anchor": "nearest", "vocabulary": 2000}
# strengths are swept, so that no method is judged at a point that suits another
SWEEPS: dict[str, tuple[dict[str, float | str], ...]] = {
    "none": ({},),
    "scapre": ({}, {"erasure_strength": 3}, {"erasure_strength": 10}, {"erasure_strength": 50}),
    "scapre-encoder": ({}, {"erasure_strength": 2}, {"erasure_strength": 5}),
    "uce": (
        {},
        {"erasure_strength": 0.1},
        {"retention_strength": 1},
        {"retention_strength": 10},
        SAME_TEXT,
        {**SAME_TEXT, "erasure_strength": 0.3},
        {**SAME_TEXT, "erasure_strength": 0.1},
        {**SAME_TEXT, "retention_strength": 10},
    ),
    "rece": ({}, {"rounds": 1}, {"retention_strength": 10}, SAME_TEXT, {**SAME_TEXT, "rounds": 1}),
    "speed": ({}, {"null_share": 1e-2}, {"null_share": 1e-4}, SAME_TEXT),
    "oce": ({}, {"erasure_strength": 0.3}, {"erasure_strength": 3}, {**SAME_TEXT, "erasure_strength": 3}),
    "scapre-printed": ({}, {"erasure_strength": 10}, {"relevance_strength": 0.1}),
    "scapre-released": ({}, {"erasure_strength": 10}, {"mask_power": 1}),
}
# what each part of the default method is worth: one part off, or on, at a time
ABLATION: tuple[dict[str, float | str], ...] = (
    {"balance": "none"},
    {"balance": "answers"},
    # α < 1 takes part of the strength back: twice the strength erases as much
    {"row_weights": "per_target", "erasure_strength": 10},
    {"row_weights": "shared", "erasure_strength": 10},
    {"vocabulary": 0},
    {"longest_word": 0},
    {"anchor": ""},
    {"conflict_strength": 0.3},
    {"geometry": 0.1},
)


def benchmark(
    arena: Annotated[list[str] | None, typer.Option(help="Arena to run; repeat for several; default: all.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Method to run; repeat for several; default: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds of probes.")] = 5,
    each: Annotated[int, typer.Option(min=1, help="Pictures of every target and retained concept per seed.")] = 2,
    is_swept: Annotated[
        bool, typer.Option("--sweep/--defaults", help="Every strength of the sweep, or the defaults only.")
    ] = True,
    dial: Annotated[list[str] | None, typer.Option(help=f"With --method, instead of a sweep: {DIAL_HELP}")] = None,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Also the default method, one part off at a time.")
    ] = False,
    others: Annotated[
        bool, typer.Option(help="Also draw concepts that are neither targets nor look-alikes: most of the time.")
    ] = True,
    draws: Annotated[
        int, typer.Option(min=1, help="How often each crowd is drawn: crowd-25, crowd-25-draw-2, and so on.")
    ] = 1,
    out: Annotated[Path | None, typer.Option(help="JSON file for the table.")] = None,
) -> None:
    """Measure how much each method forgets and keeps on the reference world. Hours in full; goes on where it was.

    Pictures and results are kept, so that a later run adds to them.
    """
    from flows.arenas import build_arenas
    from flows.benchmark import Bench, Result
    from flows.judgement import load_detectors, load_pipeline
    from flows.progress import console, progress_bar
    from flows.scores import summarize
    from flows.services import open_services

    arenas = build_arenas(draws)
    _refuse_unknown("arena", arena, arenas)
    _refuse_unknown("method", method, SWEEPS)
    if dial and not method:
        raise BadRequestError("expected the methods that --dial is for, found none; name each by --method")
    contestants = list(_contestants(method or SWEEPS, dial or [], is_swept=is_swept, ablation=ablation))
    services = open_services()
    device = services.settings.resolve_device()
    pipeline = load_pipeline(services.settings.base_model, device)
    pipeline.set_progress_bar_config(disable=True)
    bench = Bench(
        pipeline,
        load_detectors(services.settings.detectors, device),
        pictures=services.benchmark / "pictures",
        results=services.benchmark / "results.jsonl",
        features=services.settings.feature_cache,
    )
    found: list[Result] = []
    for place, contestant in itertools.product(arena or arenas, contestants):
        task = arenas[place] if others else replace(arenas[place], others=())
        with progress_bar(f"{place}, {contestant.label}: seeds", console()) as on_progress:
            found += bench.measure(task, contestant, seeds=range(seeds), each=each, on_progress=on_progress)
    rows = summarize(found)
    _show(rows)
    if out:
        out.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


def _contestants(methods: Iterable[str], pairs: list[str], *, is_swept: bool, ablation: bool) -> "Iterator[Contestant]":
    from flows.benchmark import BASE_METHOD, Contestant
    from scapre.methods import find_method

    for name in methods:
        if pairs and name != BASE_METHOD:
            dials = parse_dials(pairs, name)
            find_method(name).resolve(dials)  # refused now, not after the methods before it
            yield Contestant(name, dials)
        else:
            yield from (Contestant(name, dials) for dials in (SWEEPS[name] if is_swept else SWEEPS[name][:1]))
    if ablation:
        yield from (Contestant("scapre", dials) for dials in ABLATION)


def _show(rows: "list[Row]") -> None:
    table = Table("arena", "method", "target ↓", "told ↑", "hidden ↑", "other ↑", "overall ↑", "image-text ↑", "UQ ↑")
    for row in rows:
        shown = [
            f"{row.rates[role]:.1f} ± {row.spreads[role]:.1f}" if role in row.rates else ""
            for role in ("target", "told", "hidden", "other")
        ]
        overall = f"{row.overall:.1f} ± {row.overall_spread:.1f}"
        table.add_row(row.arena, row.contestant, *shown, overall, f"{row.image_text:.3f}", f"{row.uq:.1f}")
    Console(width=170).print(table)
    _show_capacities(rows)
    _show_choices(rows)
    Console(width=170).print("UQ ranks the methods of one arena against each other; it says nothing on its own.")


def _show_capacities(rows: "list[Row]") -> None:
    from flows.scores import RESIDUAL_ALLOWED, RETAINED_ASKED, capacities

    if not (measured := capacities(rows)):
        return
    title = f"most concepts at once: residual ≤ {RESIDUAL_ALLOWED:g} %, retained ≥ {RETAINED_ASKED:g} % of the base"
    table = Table("method", "concepts", "with", "target ↓", "told ↑", "hidden ↑", title=title)
    for found in measured:
        figures = [f"{found.row.rates[role]:.1f}" for role in ("target", "told", "hidden")] if found.row else []
        table.add_row(found.method, str(found.targets), found.row.contestant if found.row else "", *figures)
    Console(width=170).print(table)


def _show_choices(rows: "list[Row]") -> None:
    from flows.scores import leave_one_fold_out

    if choices := leave_one_fold_out(rows):
        title = "strength chosen on the other folds of look-alikes, Overall on the fold left out"
        table = Table("method", "fold", "chosen", "named ↑", "hidden ↑", title=title)
        for choice in choices:
            figures = f"{choice.told:.1f}", f"{choice.hidden:.1f}"
            table.add_row(choice.method, str(choice.fold), choice.contestant, *figures)
        Console(width=170).print(table)


def _refuse_unknown(what: str, given: list[str] | None, known: Collection[str]) -> None:
    if unknown := sorted(set(given or ()) - set(known)):
        raise BadRequestError(f"expected {what} among {', '.join(known)}, found {', '.join(unknown)}")
