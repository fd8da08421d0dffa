"""`scapre unlearn` and `scapre settings`: the engine alone, and what can be set."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.commands.dials import DIAL_HELP, parse_dials
from flows.errors import BadRequestError
from flows.exit_codes import ExitCode


def unlearn(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint in the diffusers layout, safetensors only.")],
    out: Annotated[Path, typer.Option(help="New folder for edit.safetensors and checkpoint/.")],
    concept: Annotated[list[str] | None, typer.Option(help="Concept to forget; repeat for several.")] = None,
    concepts_file: Annotated[Path | None, typer.Option(help="Concepts to forget, one a line.")] = None,
    retain: Annotated[list[str] | None, typer.Option(help="Concept that must survive; repeat for several.")] = None,
    retain_file: Annotated[Path | None, typer.Option(help="Concepts that must survive, one a line.")] = None,
    kind: Annotated[str, typer.Option(help="Kind of the concepts: object, style, identity or unsafe.")] = "object",
    method: Annotated[str, typer.Option(help="Unlearning method.")] = "scapre",
    dial: Annotated[list[str] | None, typer.Option(help=DIAL_HELP)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
) -> int:
    """Forget concepts in a checkpoint; nothing but text is needed."""
    import scapre

    concepts = [*(concept or []), *_lines(concepts_file)]
    if not concepts:
        raise BadRequestError("expected a concept to forget, found none; give --concept NAME or --concepts-file FILE")
    targets = [scapre.Concept(name, kind=kind) for name in concepts]  # ty: ignore[invalid-argument-type]
    retained = [*(retain or []), *_lines(retain_file)]
    if out.exists():
        raise BadRequestError(f"expected a new folder, found {out}, which exists; choose another or remove it")
    scapre.inspect_checkpoint(checkpoint)
    dials: dict[str, Any] = dict(parse_dials(dial or []))
    edit = scapre.unlearn(checkpoint, targets, retain=retained, method=method, **dials)
    for warning in edit.diagnostics.get("warnings", ()):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"edit {edit.digest} of base {edit.base_digest}")
    if dry_run:
        typer.echo("dry run: nothing was written")
        return ExitCode.OK
    out.mkdir(parents=True)
    scapre.merge(edit, checkpoint, out / "checkpoint")
    edit.save(out / "edit.safetensors")
    typer.echo(f"wrote {out / 'edit.safetensors'} and {out / 'checkpoint'}")
    return ExitCode.OK


def settings() -> None:
    """List every setting with its variable, its value in force and what it means."""
    from infra.settings import PREFIX, Settings, load_settings

    values = load_settings()
    table = Table("variable", "value", "meaning")
    for name, field in Settings.model_fields.items():
        value = getattr(values, name)
        is_secret = "secret" in name or "token" in name or name.endswith("_url")
        shown = "set" if is_secret and value is not None else str(value)
        table.add_row(f"{PREFIX}{name.upper()}", shown, field.description or "")
    Console().print(table)


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequestError(f"expected a text file with one name a line, found {path}: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
