"""`scapre unlearn` and `scapre settings`: the engine alone, and what can be set."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.commands.dials import DIAL_HELP, parse_dials
from flows.errors import BadRequestError
from flows.exit_codes import ExitCode

if TYPE_CHECKING:
    import scapre

CHECKPOINT_HELP = (
    "A checkpoint: a folder in the diffusers layout, or one safetensors file of Stable Diffusion 1.x, 2.x or XL."
)


def unlearn(
    checkpoint: Annotated[Path, typer.Argument(help=CHECKPOINT_HELP)],
    out: Annotated[Path, typer.Option(help="New folder for edit.safetensors and the edited checkpoint.")],
    concept: Annotated[list[str] | None, typer.Option(help="Concept to forget; repeat for several.")] = None,
    concepts_file: Annotated[Path | None, typer.Option(help="Concepts to forget, one a line.")] = None,
    retain: Annotated[list[str] | None, typer.Option(help="Concept that must survive; repeat for several.")] = None,
    retain_file: Annotated[Path | None, typer.Option(help="Concepts that must survive, one a line.")] = None,
    kind: Annotated[str, typer.Option(help="Kind of the concepts: object, style, identity or unsafe.")] = "object",
    method: Annotated[str, typer.Option(help="Unlearning method.")] = "scapre",
    dial: Annotated[list[str] | None, typer.Option(help=DIAL_HELP)] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer, for a single file that has none beside it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what each concept would become and which names are at risk; no more.")
    ] = False,
) -> int:
    """Forget concepts in a checkpoint; nothing but text is needed.

    What the text encoder makes of retained names is kept in the home folder, so that the next time takes less.
    """
    import scapre
    from infra.settings import load_settings

    concepts = [*(concept or []), *_lines(concepts_file)]
    if not concepts:
        raise BadRequestError("expected a concept to forget, found none; give --concept NAME or --concepts-file FILE")
    targets = [scapre.Concept(name, kind=kind) for name in concepts]  # ty: ignore[invalid-argument-type]
    retained = [*(retain or []), *_lines(retain_file)]
    if out.exists():
        raise BadRequestError(f"expected a new folder, found {out}, which exists; choose another or remove it")
    info = scapre.inspect_checkpoint(checkpoint)
    for way in info.not_covered:
        typer.echo(f"note: {way}; an edit leaves that as it is", err=True)
    dials: dict[str, Any] = dict(parse_dials(dial or []))
    base = scapre.SingleFile(checkpoint, tokenizer) if checkpoint.is_file() else checkpoint
    cache = load_settings().feature_cache
    if dry_run:
        _show_preflight(scapre.preflight(base, targets, retain=retained, method=method, cache=cache, **dials))
        typer.echo("dry run: nothing was solved and no model was written")
        return ExitCode.OK
    edit = scapre.unlearn(base, targets, retain=retained, method=method, cache=cache, **dials)
    for warning in edit.diagnostics["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"edit {edit.digest} of base {edit.base_digest}")
    started = time.perf_counter()
    edited = _write(edit, checkpoint, out)
    spent = {**edit.diagnostics["seconds"], "save": time.perf_counter() - started}
    typer.echo(f"wrote {out / 'edit.safetensors'} and {edited}")
    typer.echo(", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in spent.items()))
    return ExitCode.OK


def _write(edit: "scapre.Edit", checkpoint: Path, out: Path) -> Path:
    """Writes edit and edited checkpoint into the new folder `out`, all or nothing; returns the checkpoint."""
    import scapre
    from scapre.writing import new_folder

    is_file = checkpoint.is_file()
    name, write = ("checkpoint.safetensors", scapre.export_single_file) if is_file else ("checkpoint", scapre.merge)
    with new_folder(out, overwrite=False) as building:
        edit.save(building / "edit.safetensors")
        write(edit, checkpoint, building / name)
    return out / name


def _show_preflight(found: "scapre.Preflight") -> None:
    console = Console()
    becomes = Table("concept", "becomes", title="targets")
    for name, anchor in found.anchors.items():
        becomes.add_row(name, anchor or "nothing in particular (the empty prompt)")
    at_risk = Table("retained name", "near target", "cosine", title="nearest retained names, most at risk first")
    for one in found.at_risk:
        at_risk.add_row(one.name, one.target, f"{one.cosine:.2f}")
    console.print(becomes, at_risk)
    console.print(
        f"retained: {len(found.retain_named)} named, {len(found.retain_found)} found in the vocabulary; "
        f"{len(found.synonyms_left_out)} left out as synonyms, {len(found.strangers_left_out)} as unknown words"
    )
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)


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
