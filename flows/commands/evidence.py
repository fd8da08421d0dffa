"""`scapre evidence …`: what a verdict rests on, shown and verified without a server."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.errors import BadRequestError
from flows.exit_codes import ExitCode

app = typer.Typer(no_args_is_help=True, help="Evidence bundles: show, verify; offline.")
Folder = Annotated[Path, typer.Argument(help="Folder of a bundle, as `scapre judge --out` and a takedown write it.")]


@app.command()
def verify(
    folder: Folder,
    digest: Annotated[
        str | None, typer.Option(help="The evidence's digest, from the ledger or another trusted place.")
    ] = None,
) -> int:
    """Recompute every digest and derive the verdict again; name every difference.

    Needs nothing but the folder: no network, no model, no pictures. Exit code 0 when nothing differs, 1 otherwise.
    Without --digest, a bundle that somebody made up as a whole verifies: compare its digest with the ledger's.

    Example: `scapre evidence verify evidence --digest 3f0c…`
    """
    from validation.evidence import evidence_digest, verify_evidence

    differences = verify_evidence(folder, expected_digest=digest)
    for difference in differences:
        typer.echo(difference)
    if differences:
        typer.echo(f"the evidence does not verify: {len(differences)} differences")
        return ExitCode.FAILED
    typer.echo(f"the evidence verifies, digest {evidence_digest(folder)}")
    return ExitCode.OK


@app.command()
def show(folder: Folder) -> None:
    """Print what a bundle says: the verdict, its reasons, every gate and what was compared. Verifies nothing.

    Example: `scapre evidence show evidence`
    """
    from validation.evidence import EvidenceError, evidence_digest, read_evidence

    try:
        documents = read_evidence(folder)
        stated, protocol = documents["verdict.json"], documents["protocol.json"]
        gates = _gates(stated["gates"])
    except (EvidenceError, KeyError, TypeError) as error:
        said = str(error) if isinstance(error, EvidenceError) else f"{folder}: {error} is missing; fetch it again"
        raise BadRequestError(said) from error
    typer.echo(f"verdict     {stated['verdict']}{', void' if stated['is_void'] else ''}")
    for reason in stated["reasons"]:
        typer.echo(f"because     {reason['text']}")
    Console().print(gates)
    for name in ("base_digest", "candidate_digest", "probes_digest"):
        typer.echo(f"{name.replace('_', ' '):<17} {protocol[name]}")
    typer.echo(f"evidence digest   {evidence_digest(folder)}")
    typer.echo(f"not verified here: `scapre evidence verify {folder}`")


def _gates(gates: list[dict[str, Any]]) -> Table:
    table = Table("gate", "answer", "why")
    for gate in gates:
        table.add_row(gate["gate"], gate["verdict"] if gate["is_gated"] else "reported", gate["reason"])
    return table
