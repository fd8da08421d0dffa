"""`scapre packs …`: what the judge can ask, and whether a pack of one's own is in order."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from validation.probe_packs import Pack, Wording, load_pack, pack_names
from validation.probes import Subject

app = typer.Typer(no_args_is_help=True, help="Probe packs: list, show, check.")


@app.command("list")
def list_packs() -> None:
    """List the packs that come with the judge, for a policy's `further_packs` and for `scapre judge --pack`."""
    table = Table("pack", "version", "digest", "about")
    for name in pack_names():
        pack = load_pack(name)
        table.add_row(name, str(pack.version), pack.digest[:12], pack.about)
    Console().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a pack, or path of a YAML file.")],
    concept: Annotated[str | None, typer.Option(help="Print the prompts for this concept, one a line.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another name of the concept; repeat for several.")] = None,
    style: Annotated[bool, typer.Option("--style", help="The concept is a style.")] = False,
) -> None:
    """Show what a pack asks and for which concepts, or every prompt for one concept."""
    pack = load_pack(name)
    if concept is None:
        _describe(pack)
        return
    prompts = pack.prompts(Subject(concept, "style" if style else "object", tuple(alias or ())))
    typer.echo("\n".join(prompts) if prompts else f"pack {pack.name} has no prompt for {concept!r}: nothing is asked")


@app.command()
def check(file: Annotated[Path, typer.Argument(help="A YAML file.")]) -> None:
    """Check a pack of your own; a fault is named and the exit code says so."""
    _describe(load_pack(file))


def _describe(pack: Pack) -> None:
    typer.echo(f"pack     {pack.name}, version {pack.version}\ndigest   {pack.digest}\nabout    {pack.about}")
    for wording in pack.wordings:
        typer.echo(f"asks     {_asked_of(wording)}, {wording.language}: {len(wording.templates)} templates")
        for template in wording.templates:
            typer.echo(f"           {template}")
    for family in pack.families:
        typer.echo(f"family   {family.name}")
        for role, names in (("targets", family.targets), ("retained", family.retained)):
            if names:
                typer.echo(f"           {role}: {', '.join(names)}")


def _asked_of(wording: Wording) -> str:
    what = {"object": "objects", "style": "styles", "caption": "captions"}[wording.kind]
    if isinstance(wording.names, dict):
        return f"{len(wording.names)} {what} by names of the pack's own"
    if wording.kind == "caption":
        return what
    return f"any {what} by {'their own names' if wording.names == 'own' else 'the other names they come with'}"
