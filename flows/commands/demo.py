"""`scapre demo`: the main job on embedded defaults."""

from pathlib import Path

import typer

from flows import intake
from flows.commands.takedown import report_outcome
from flows.exit_codes import ExitCode
from flows.requests import load_request
from flows.services import open_services

_REQUEST = Path(__file__).parent.parent / "demo_request.yaml"
_WITHHELD = Path(__file__).parent.parent / "demo_withheld.txt"
BASE = "reference"


def demo() -> int:
    """Forget ten concepts of the reference model, judge, register, promote. A few minutes on two cores, no GPU."""
    typer.echo("1/4 the reference model goes into the object store")
    services = open_services()
    from flows.candidate import register_base

    register_base(services, BASE, services.settings.base_model)
    typer.echo("2/4 a takedown request for ten concepts is recorded")
    request_id, is_new = intake.add_request(services, load_request(_REQUEST))
    typer.echo(f"    {request_id} {'added' if is_new else 'was there already'}")
    typer.echo("3/4 unlearn, render before and after, judge (the long part)")
    from flows.takedown import TakedownOrder, takedown

    withheld = tuple(_WITHHELD.read_text(encoding="utf-8").splitlines())
    outcome = takedown(TakedownOrder(base=BASE, withheld=withheld))
    code = report_outcome(outcome)
    typer.echo("4/4 the record")
    faults = services.ledger.verify()
    typer.echo(
        f"    ledger {'verifies' if not faults else 'does not verify'}, {len(services.ledger.entries())} entries"
    )
    typer.echo("    MLflow: make mlflow, then http://127.0.0.1:5000")
    typer.echo("    more: scapre status, scapre ledger show")
    return ExitCode.FAILED if faults else code
