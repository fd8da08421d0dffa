"""`scapre watchdog`: deadlines and the compliance schedule, seen from outside the pipeline."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from flows.exit_codes import ExitCode
from flows.watchdog import COMPLIANCE_EVERY, Watch, report, watch

_HOURS = COMPLIANCE_EVERY / timedelta(hours=1)


def watchdog(
    compliance_every_hours: Annotated[
        float, typer.Option(min=0.01, help="How old the last compliance run may be: its schedule and some slack.")
    ] = _HOURS,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is due; record nothing.")] = False,
) -> int:
    """Say which deadlines are near or missed, and whether compliance still runs. Start it from cron, not from a flow.

    It reads the ledger's database and nothing else, so that it works when everything else is down. Each deadline is
    recorded once when near and once when missed. Exit codes: 0 nothing is late, 1 something is.
    """
    from flows.deadlines import load_deadlines
    from infra.ledger import Ledger
    from infra.settings import load_settings

    settings = load_settings()
    ledger = Ledger.open(settings.ledger_url)
    seen = watch(
        ledger,
        load_deadlines(settings.deadlines),
        now=datetime.now(UTC),
        compliance_every=timedelta(hours=compliance_every_hours),
    )
    recorded = 0 if dry_run else report(ledger, seen)
    typer.echo(json.dumps(_describe(seen)) if as_json else "\n".join([*_lines(seen), f"recorded    {recorded}"]))
    return ExitCode.FAILED if seen.is_late else ExitCode.OK


def _lines(seen: Watch) -> list[str]:
    lines = [
        f"{each.state:<11} {each.request_id} {each.deadline} by {each.due_at:%Y-%m-%d %H:%M} UTC, case {each.stands_at}"
        for each in seen.due
    ]
    if seen.last_compliance is None:
        lines.append("compliance  nothing in production that a request is about")
    else:
        late = (
            "late: run `scapre compliance run`, and see why its schedule did not" if seen.is_compliance_late else "ok"
        )
        lines.append(f"compliance  last {seen.last_compliance:%Y-%m-%d %H:%M} UTC, {late}")
    return lines if seen.due else ["deadlines   none near or missed", *lines]


def _describe(seen: Watch) -> dict[str, object]:
    return {
        "is_late": seen.is_late,
        "due": [
            {
                "request_id": each.request_id,
                "deadline": each.deadline,
                "state": each.state,
                "due_at": each.due_at.isoformat(),
                "case": each.stands_at,
                "is_new": each.is_new,
            }
            for each in seen.due
        ],
        "last_compliance": seen.last_compliance and seen.last_compliance.isoformat(),
        "is_compliance_late": seen.is_compliance_late,
    }
