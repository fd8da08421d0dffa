"""`scapre unlearn`, `scapre export` and `scapre settings`: the engine alone, and what can be set."""

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.commands.dials import DIAL_HELP, parse_dials
from flows.errors import BadRequestError
from flows.exit_codes import ExitCode

if TYPE_CHECKING:
    from scapre import LoraExport

CHECKPOINT_HELP = (
    "A checkpoint: a folder in the diffusers layout, or one safetensors file of Stable Diffusion 1.x, 2.x or XL."
)
NOTEWORTHY_ERROR = 0.05
"""Relative error of a LoRA from which the command says which rank would do."""


class ExportKind(StrEnum):
    """What an edit can be given away as."""

    FOLDER = "folder"
    SINGLE_FILE = "single-file"
    LORA = "lora"


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
    info = scapre.inspect_checkpoint(checkpoint)
    for way in info.not_covered:
        typer.echo(f"note: {way}; an edit leaves that as it is", err=True)
    dials: dict[str, Any] = dict(parse_dials(dial or []))
    base = scapre.SingleFile(checkpoint, tokenizer) if checkpoint.is_file() else checkpoint
    edit = scapre.unlearn(base, targets, retain=retained, method=method, **dials)
    for warning in edit.diagnostics.get("warnings", ()):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"edit {edit.digest} of base {edit.base_digest}")
    if dry_run:
        typer.echo("dry run: nothing was written")
        return ExitCode.OK
    out.mkdir(parents=True)
    started = time.perf_counter()
    if checkpoint.is_file():
        edited = scapre.export_single_file(edit, checkpoint, out / "checkpoint.safetensors")
    else:
        edited = scapre.merge(edit, checkpoint, out / "checkpoint")
    edit.save(out / "edit.safetensors")
    spent = {**edit.diagnostics["seconds"], "save": time.perf_counter() - started}
    typer.echo(f"wrote {out / 'edit.safetensors'} and {edited}")
    typer.echo(", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in spent.items()))
    return ExitCode.OK


def export(
    edit: Annotated[Path, typer.Argument(help="The edit.safetensors that `scapre unlearn` wrote.")],
    checkpoint: Annotated[Path, typer.Argument(help=f"The base of the edit. {CHECKPOINT_HELP}")],
    out: Annotated[Path, typer.Option(help="Where to write: a folder, or a file that ends in .safetensors.")],
    kind: Annotated[ExportKind, typer.Option("--as", help="What to write, see above.")] = ExportKind.FOLDER,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the LoRA: larger is closer to the edit, and a larger file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at OUT already.")] = False,
) -> int:
    """Give an edit away in the form another program reads.

    **folder**: the whole checkpoint in the diffusers layout, for `from_pretrained`.

    **single-file**: one file in the original layout of Stable Diffusion 1.x, 2.x and XL, as web UIs read it.

    **lora**: only the change, as a product of two thin matrices for each projection. It approximates the edit; how well
    is printed. A concept needs about as many ranks as the dial `rank` (3), so ten concepts need about 30. Whoever uses
    the model must load it, so it proves nothing about the base model alone.

    Example: `scapre export out/edit.safetensors base --as lora --rank 16 --out forget.safetensors`

    The base must be the one the edit was computed from, bit for bit. What is written is complete or absent.
    """
    import scapre

    _check_export(out, kind, rank, force=force)
    loaded = scapre.Edit.load(edit)
    if kind is ExportKind.LORA and rank is not None:
        _show_lora(scapre.export_lora(loaded, checkpoint, out, rank=rank, overwrite=force))
    elif kind is ExportKind.SINGLE_FILE:
        scapre.export_single_file(loaded, checkpoint, out, overwrite=force)
    else:
        scapre.merge(loaded, checkpoint, out, overwrite=force)
    typer.echo(f"wrote {out}")
    return ExitCode.OK


def _check_export(out: Path, kind: ExportKind, rank: int | None, *, force: bool) -> None:
    if kind is ExportKind.LORA and rank is None:
        raise BadRequestError("expected a rank for the LoRA, found none; give --rank, for example --rank 16")
    if kind is not ExportKind.LORA and rank is not None:
        raise BadRequestError(f"expected no rank for {kind.value}, found {rank}; leave --rank out or give --as lora")
    if kind is not ExportKind.FOLDER and out.suffix != ".safetensors":
        raise BadRequestError(
            f"expected a name that ends in .safetensors, found {out.name}; other programs look for it"
        )
    if out.exists() and not force:
        raise BadRequestError(
            f"expected a new name, found {out}, which exists; choose another or replace it by --force"
        )


def _show_lora(written: "LoraExport") -> None:
    table = Table("projection", "relative error")
    for name, error in sorted(written.errors.items()):
        table.add_row(name, f"{error:.2%}")
    table.add_row("all together", f"{written.error:.2%}", style="bold")
    Console().print(table)
    if written.error > NOTEWORTHY_ERROR:
        advice = f"--rank {written.faithful_rank} would lose at most 1 %"
        typer.echo(f"warning: rank {written.rank} loses {written.error:.0%} of the change; {advice}", err=True)


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
