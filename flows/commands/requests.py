"""`scapre request …` and `scapre base …`: what to forget, and from which model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows import intake
from flows.requests import load_request
from flows.services import open_services

app = typer.Typer(no_args_is_help=True, help="Takedown requests: add, list, show, withdraw, template.")
base_app = typer.Typer(no_args_is_help=True, help="Base models in the object store.")
_EXAMPLE = Path(__file__).parent.parent / "demo_request.yaml"


@app.command()
def add(file: Annotated[Path, typer.Argument(help="A YAML or JSON file; see `scapre request template`.")]) -> None:
    """Record a takedown request. The same request twice is one request."""
    request = load_request(file)
    services = open_services()
    request_id, is_new = intake.add_request(services, request)
    typer.echo(f"{request_id} {'added' if is_new else 'was there already; nothing changed'}")


@app.command()
def withdraw(request_id: Annotated[str, typer.Argument(help="For example req-0123456789abcdef.")]) -> None:
    """Take a request out of force; the next run solves from the base without it."""
    was_active = intake.withdraw_request(open_services(), request_id)
    typer.echo(f"{request_id} {'withdrawn' if was_active else 'was withdrawn before; nothing changed'}")


@app.command("list")
def list_requests() -> None:
    """List all requests. Concepts are not shown; `scapre request show ID` does."""
    requests = intake.active_requests(open_services())
    table = Table("request", "received", "ground", "jurisdiction", "base", "concepts")
    for request_id, request in requests.items():
        count = str(len(request.subjects))
        table.add_row(request_id, str(request.received), request.ground, request.jurisdiction, request.base, count)
    Console().print(table if requests else "no requests; add one with `scapre request add FILE`")


@app.command()
def show(request_id: Annotated[str, typer.Argument(help="For example req-0123456789abcdef.")]) -> None:
    """Print one request as JSON, the requester included: mind who reads over your shoulder."""
    typer.echo(intake.find_request(open_services(), request_id).model_dump_json(indent=2))


@app.command()
def template() -> None:
    """Print a complete example of a request file."""
    typer.echo(_EXAMPLE.read_text(encoding="utf-8"), nl=False)


@base_app.command("add")
def add_base(
    name: Annotated[str, typer.Argument(help="How requests name it.")],
    folder: Annotated[Path, typer.Argument(help="A checkpoint in the diffusers layout, safetensors only.")],
) -> None:
    """Put a base model into the object store."""
    from flows.candidate import register_base

    typer.echo(f"{name} {register_base(open_services(), name, folder)}")
