"""`scapre export`: an edit in the form another program reads."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from flows.commands.engine import CHECKPOINT_HELP
from flows.errors import BadRequestError
from flows.exit_codes import ExitCode
from flows.progress import console as people

if TYPE_CHECKING:
    from scapre import LoraExport

NOTEWORTHY_ERROR = 0.05
"""Relative error of a LoRA from which the command says which rank would do."""


class ExportKind(StrEnum):
    """What an edit can be given away as."""

    FOLDER = "folder"
    SINGLE_FILE = "single-file"
    LORA = "lora"


def export(
    edit: Annotated[Path, typer.Argument(help="The edit.safetensors that `scapre unlearn` wrote.")],
    checkpoint: Annotated[Path, typer.Argument(help=f"The base of the edit. {CHECKPOINT_HELP}")],
    out: Annotated[Path, typer.Option(help="Where to write: a folder, or a file that ends in .safetensors.")],
    kind: Annotated[ExportKind, typer.Option("--as", help="What to write, see above.")] = ExportKind.FOLDER,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the LoRA: larger is closer to the edit, and a larger file.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the checkpoint or file that is at OUT already.")
    ] = False,
) -> int:
    """Give an edit away in the form another program reads.

    **folder**: the whole checkpoint in the diffusers layout, for `from_pretrained`.

    **single-file**: one file in the original layout of Stable Diffusion 1.x, 2.x and XL, as web UIs read it.

    **lora**: only the change, as a product of two thin matrices for each weight. It approximates the edit; how well
    is printed, and which rank would lose at most 1 %. Whoever uses the model must load it, so it proves nothing about
    the base model alone.

    Example: `scapre export out/edit.safetensors base --as lora --rank 16 --out forget.safetensors`

    The base must be the one the edit was computed from, bit for bit. What is written is complete or absent.
    """
    import scapre

    _check_export(out, kind, rank, force=force)
    loaded = scapre.Edit.load(edit)
    lora: LoraExport | None = None
    with people().status("writing"):
        if kind is ExportKind.LORA and rank is not None:
            lora = scapre.export_lora(loaded, checkpoint, out, rank=rank, overwrite=force)
        elif kind is ExportKind.SINGLE_FILE:
            scapre.export_single_file(loaded, checkpoint, out, overwrite=force)
        else:
            scapre.merge(loaded, checkpoint, out, overwrite=force)
    if lora is not None:
        _show_lora(lora)
        warn_of_no_loader(lora.pipeline_class)
    typer.echo(f"wrote {out}")
    return ExitCode.OK


def _check_export(out: Path, kind: ExportKind, rank: int | None, *, force: bool) -> None:
    if kind is ExportKind.LORA and rank is None:
        raise BadRequestError("expected a rank for the LoRA, found none; give --rank, for example --rank 16")
    if kind is not ExportKind.LORA and rank is not None:
        raise BadRequestError(f"expected no rank for {kind.value}, found {rank}; leave --rank out or give --as lora")
    if out.exists() and not force:
        raise BadRequestError(
            f"expected a new name, found {out}, which exists; choose another or replace it by --force"
        )


def warn_of_no_loader(pipeline_class: str) -> None:
    """Tells of a LoRA that diffusers cannot put on a pipeline of this class."""
    import diffusers

    if not hasattr(getattr(diffusers, pipeline_class), "load_lora_weights"):
        typer.echo(
            f"warning: {pipeline_class} loads no LoRA in diffusers {diffusers.__version__}; give away the folder",
            err=True,
        )


def _show_lora(written: "LoraExport") -> None:
    table = Table(Column("weight", overflow="fold"), "relative error")
    for name, error in sorted(written.errors.items()):
        table.add_row(name, f"{error:.2%}")
    table.add_row("all together", f"{written.error:.2%}", style="bold")
    Console().print(table)
    if written.error > NOTEWORTHY_ERROR:
        advice = f"--rank {written.faithful_rank} would lose at most 1 %"
        typer.echo(f"warning: rank {written.rank} loses {written.error:.0%} of the change; {advice}", err=True)
