"""What the page of a run shows in Prefect: how far it is, the verdict, the gates, pictures, the report, and a log.

Guarantees:
    1. A concept is named only if it is an object; styles, persons and unsafe concepts are `REQUEST#NUMBER`, since
       Prefect keeps its pages beyond any erasure. The report, which is kept with the evidence, names them all. The log
       holds digests, numbers and request ids only.
    2. Pictures are shown of objects and styles only.
    3. The page follows the work and never decides it: a page that cannot be written stops nothing.
"""

import base64
import contextlib
import io
import logging
import time
from collections.abc import Generator, Mapping
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import PrefectException
from prefect.logging.handlers import APILogHandler

from flows.evidence import Kept
from flows.progress import OnProgress, console, progress_bar
from flows.regressions import subjects_of
from flows.tracking import before_and_after, shown_targets
from validation import GateResult, Judgement
from validation.formats import exact_percent, exact_points, percent_down, percent_up, points_down, points_up

_SECONDS_BETWEEN_UPDATES = 2.0
_TARGETS_SHOWN, _SIDE = 10, 96  # the page is a row in Prefect's database: some hundred kilobytes at most
_log = logging.getLogger(__name__)
_run_log = logging.getLogger(f"{__name__}.lines")
_run_log.setLevel(logging.INFO)
_run_log.addHandler(APILogHandler())
_run_log.propagate = False

Names = Mapping[str, tuple[str, ...]]
"""Opaque names by concept in lower case, from `regressions.subject_names`."""


def note(line: str) -> None:
    """Writes a line to the log on the run's page; nowhere else, and nowhere at all outside a run."""
    if FlowRunContext.get() or TaskRunContext.get():
        _run_log.info(line)


@contextlib.contextmanager
def shown_progress(description: str, *, of: str = "pictures", after: float = 0.0) -> Generator[OnProgress]:
    """Yields a callback that shows progress on the terminal and on the run's page, from `after` seconds on."""
    artifact: UUID | None = None
    started = shown_at = time.monotonic()
    with progress_bar(description, console(), after=after) as on_console:

        def show(done: int, total: int) -> None:
            nonlocal artifact, shown_at
            on_console(done, total)
            now, share = time.monotonic(), 100.0 * done / max(total, 1)
            if artifact is None and now - started >= after:
                shown_at = now
                with _never_in_the_way():
                    created = create_progress_artifact(share, key=description, description=f"{description}: {of} done")
                    artifact = cast(UUID, created)  # a coroutine only where a loop runs, which in a step it does not
            elif artifact is not None and (now - shown_at >= _SECONDS_BETWEEN_UPDATES or done >= total):
                shown_at = now
                with _never_in_the_way():
                    update_progress_artifact(artifact, progress=share)

        yield show


def show_judgement(kept: Kept, *, purpose: str, names: Names, notes: Mapping[str, str] | None = None) -> None:
    """Puts a judgement on the run's page.

    Args:
        kept: The judgement and its evidence.
        purpose: `takedown`, `compliance` or `release`; artifacts of one purpose have one history.
        names: Opaque names of the concepts.
        notes: Further lines for the verdict, by what they are.
    """
    judgement = kept.judgement
    passed, asked = _gates_passed(judgement)
    note(f"{_word(judgement)}: {passed} of {asked} gates and controls, {len(judgement.measures)} pictures")
    report = (kept.folder / "report.html").absolute().as_uri()
    with _never_in_the_way():
        create_markdown_artifact(_verdict(kept, notes or {}), key=f"{purpose}-verdict", description="the verdict")
        create_table_artifact(gate_rows(judgement, names), key=f"{purpose}-gates", description="every gate")
        create_link_artifact(
            report, link_text="report.html", key=f"{purpose}-report", description="on the machine that judged"
        )


def gate_rows(judgement: Judgement, names: Names) -> list[dict[str, Any]]:
    """Returns the gates as rows of a table: what did not pass first, and gates before controls."""
    kinds = dict(zip(judgement.measures.concept, judgement.measures.kind, strict=True))
    order = {"failed": 0, "inconclusive": 1, "passed": 2}
    ranked = sorted(judgement.gates, key=lambda gate: (not gate.is_gated, order[gate.verdict], gate.is_control))
    return [
        {
            "verdict": gate.verdict if gate.is_gated else "reported",
            "gate": gate.gate,
            "about": _about(gate, kinds, names),
            "asked by": gate.attack or gate.pack or "",
            "found": f"{gate.hits} of {gate.pictures}" if gate.hits is not None else _pairs(gate),
            "bounds": _bounds(gate),
            "limit": _limit(gate),
        }
        for gate in ranked
    ]


def picture_uri(judgement: Judgement) -> str | None:
    """Returns pictures of the first targets, before and after, as a data URI; None where there are none to show."""
    targets = shown_targets(judgement)[:_TARGETS_SHOWN]
    if not targets:
        return None
    content = io.BytesIO()
    before_and_after(judgement, targets, side=_SIDE).save(content, format="JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _verdict(kept: Kept, notes: Mapping[str, str]) -> str:
    judgement = kept.judgement
    passed, asked = _gates_passed(judgement)
    lines = [
        f"# {_word(judgement)}",
        f"{passed} of {asked} gates and controls passed, on {len(judgement.measures)} pictures.",
        "| | |",
        "|---|---|",
        f"| candidate | `{judgement.protocol.candidate_digest}` |",
        f"| base | `{judgement.protocol.base_digest}` |",
        f"| evidence | `{kept.digest}` |",
        f"| bundle | `{kept.uri}` |",
        *(f"| {what} | {text} |" for what, text in notes.items()),
    ]
    # an image artifact would print the whole data URI below the picture
    if sheet := picture_uri(judgement):
        lines += ["", "The base above, the candidate below, same prompts and seeds:", "", f"![pictures]({sheet})"]
    return "\n".join([lines[0], "", lines[1], "", *lines[2:]])


def _word(judgement: Judgement) -> str:
    return "void: a control failed" if judgement.is_void else judgement.verdict


def _gates_passed(judgement: Judgement) -> tuple[int, int]:
    gates = [gate for gate in judgement.gates if gate.is_gated]
    return sum(gate.verdict == "passed" for gate in gates), len(gates)


def _about(gate: GateResult, kinds: Mapping[str, str], names: Names) -> str:
    if gate.concept is None:
        if gate.role in ("base", "candidate"):
            return f"pictures of the {gate.role}"
        return f"{gate.role} concepts" if gate.role else "all"
    if kinds.get(gate.concept) == "object":
        return gate.concept
    return ", ".join(subjects_of(gate, names)) or f"a {gate.role or 'named'} concept"


def _pairs(gate: GateResult) -> str:
    return f"{gate.pictures} pairs" if gate.pictures else ""


def _limit(gate: GateResult) -> str:
    if gate.limit is None:
        return ""
    if gate.gate in ("retention", "hidden"):
        return f"{exact_points(gate.limit)} points"
    return f"{gate.limit:+.3f}" if gate.gate == "quality" else exact_percent(gate.limit)


def _bounds(gate: GateResult) -> str:
    if gate.lower is None or gate.upper is None:
        return ""
    if gate.gate in ("retention", "hidden"):
        return f"{points_down(gate.lower)} to {points_up(gate.upper)} points"
    if gate.gate == "quality":
        return f"{gate.lower:+.3f} to {gate.upper:+.3f}"
    return f"{percent_down(gate.lower)} to {percent_up(gate.upper)}"


@contextlib.contextmanager
def _never_in_the_way() -> Generator[None]:
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        _log.warning("the run's page could not be written: %s", error)
