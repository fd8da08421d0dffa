"""`scapre unlearn`, `scapre dials` and `scapre settings`: the engine alone, and what can be set."""

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.commands.dials import DIAL_HELP, parse_dials
from flows.commands.tables import table_of_risks, table_of_targets
from flows.errors import BadRequestError
from flows.exit_codes import ExitCode
from flows.progress import QUIET_SECONDS, progress_bar
from flows.progress import console as people

if TYPE_CHECKING:
    import scapre

SYNONYMS_SHOWN = 20
CHECKPOINT_HELP = (
    "A checkpoint: a folder in the diffusers layout, or one safetensors file of Stable Diffusion 1.x, 2.x or XL."
)


def unlearn(
    checkpoint: Annotated[Path, typer.Argument(help=CHECKPOINT_HELP)],
    out: Annotated[
        Path | None, typer.Option(help="New folder for edit.safetensors and the edited checkpoint.", show_default=False)
    ] = None,
    concept: Annotated[list[str] | None, typer.Option(help="Concept to forget; repeat for several.")] = None,
    concepts_file: Annotated[Path | None, typer.Option(help="Concepts to forget, one a line.")] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="CONCEPT=ALIAS: another name to forget with it, as tiger=tigre; repeat.")
    ] = None,
    anchor: Annotated[
        list[str] | None, typer.Option(help="CONCEPT=ANCHOR: what to draw instead, as tiger=cat; tiger= for nothing.")
    ] = None,
    retain: Annotated[
        list[str] | None, typer.Option(help="Concept that must survive, look-alikes above all; repeat for several.")
    ] = None,
    retain_file: Annotated[Path | None, typer.Option(help="Concepts that must survive, one a line.")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Kind of the concepts: object, style, identity or unsafe, CONCEPT=KIND for one; object by default.",
            show_default=False,
        ),
    ] = None,
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

    What the text encoder makes of text is kept under SCAPRE_HOME (by default the folder var where you are), so that
    the next time takes less.

    Example: `scapre unlearn infra/reference/model --concept tiger --retain lion --retain cat --out out`
    """
    import scapre
    from infra.settings import load_settings
    from scapre.methods import find_method
    from scapre.writing import begun_folder, check_writable, refuse_existing

    targets = _concepts(
        [*(concept or []), *_lines(concepts_file)], kinds=kind or [], aliases=alias or [], anchors=anchor or []
    )
    retained = [*(retain or []), *_lines(retain_file)]
    if out is None and not dry_run:
        raise BadRequestError("expected a new folder to write to, found none; give --out DIR, or --dry-run")
    if out is not None and os.path.lexists(out):
        raise BadRequestError(f"expected a new folder, found {out}, which exists; choose another or remove it")
    if out is not None and not dry_run:
        if out.resolve().is_relative_to(checkpoint.resolve()):
            raise BadRequestError(f"expected a place outside of the checkpoint, found {out}; choose another")
        check_writable(out)
    info, chosen = scapre.inspect_checkpoint(checkpoint), find_method(method)
    if not checkpoint.is_file():
        scapre.check_mergeable(info, memories=chosen.edits_memories)
    for way in info.adapter.left_open(memories=chosen.edits_memories):
        typer.echo(f"note: not covered by an edit: {way}", err=True)
    dials: dict[str, Any] = chosen.resolve(parse_dials(dial or [], method))
    base = scapre.SingleFile(checkpoint, tokenizer) if checkpoint.is_file() else checkpoint
    cache = load_settings().feature_cache
    if out is None or dry_run:
        with progress_bar("reading text", people(), after=QUIET_SECONDS) as on_progress:
            found = scapre.preflight(
                base, targets, retain=retained, method=method, cache=cache, on_progress=on_progress, **dials
            )
        _show_preflight(found, targets)
        typer.echo("dry run: nothing was solved and no model was written")
        return ExitCode.OK
    check = partial(refuse_existing, out, overwrite=False)
    name, copied = (
        ("checkpoint.safetensors", scapre.rewriting)
        if checkpoint.is_file()
        else ("checkpoint", partial(scapre.merging, memories=chosen.edits_memories))
    )
    with begun_folder(out, check) as building, copied(checkpoint, building / name) as put_on:
        with progress_bar("reading text", people(), after=QUIET_SECONDS) as on_progress:
            edit = scapre.unlearn(
                base, targets, retain=retained, method=method, cache=cache, on_progress=on_progress, **dials
            )
        started = time.perf_counter()
        with people().status("writing the edited checkpoint"):
            edit.save(building / "edit.safetensors")
            put_on(edit)
    saved = time.perf_counter()
    _show_forgotten(edit)
    spent = {**edit.diagnostics["seconds"], "save": saved - started}
    typer.echo(f"wrote {out / 'edit.safetensors'} and {out / name}")
    typer.echo(", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in spent.items()))
    return ExitCode.OK


def dials(method: Annotated[str, typer.Argument(help="Unlearning method.")] = "scapre") -> None:
    """Explain what `--dial` can set, for one method; and list the methods."""
    from scapre.methods import METHODS, find_method

    table = Table("dial", "default", "meaning", title=method, show_lines=True)
    for name, one in sorted(find_method(method).dials.items()):
        table.add_row(name, str(one.default) or "(empty)", Text(f"{one.meaning}\ntakes {one.expected}"))
    Console().print(table)
    typer.echo(f"methods: {', '.join(sorted(METHODS))}")


def _concepts(names: list[str], *, kinds: list[str], aliases: list[str], anchors: list[str]) -> list["scapre.Concept"]:
    import scapre
    from scapre.concepts import name_key

    if not names:
        raise BadRequestError("expected a concept to forget, found none; give --concept NAME or --concepts-file FILE")
    also, becomes = _of_concepts(aliases, "alias", names), _of_concepts(anchors, "anchor", names)
    own = _of_concepts([one for one in kinds if "=" in one], "kind", names)
    of_all = [one for one in kinds if "=" not in one] or ["object"]
    return [
        scapre.Concept(
            name,
            kind=_only("kind", own.get(name_key(name), of_all)),  # ty: ignore[invalid-argument-type]
            aliases=tuple(also.get(name_key(name), ())),
            anchor=_only("anchor", becomes.get(name_key(name), [])),
        )
        for name in names
    ]


def _only(what: str, given: list[str]) -> str | None:
    """Returns what was given, once or more; `None` if nothing was."""
    if len(set(given)) > 1:
        raise BadRequestError(f"expected one {what} for each concept, found {' and '.join(map(repr, given))}; keep one")
    return given[0] if given else None


def _of_concepts(pairs: list[str], what: str, names: list[str]) -> dict[str, list[str]]:
    """Returns what each of the names, as `name_key` writes it, is given."""
    from scapre.concepts import name_key

    known, found = {name_key(name) for name in names}, {}
    for pair in pairs:
        parts = [part.strip() for part in pair.split("=")]
        ways = (("=".join(parts[:place]), "=".join(parts[place:])) for place in range(len(parts) - 1, 0, -1))
        name, value = next(((name, value) for name, value in ways if name_key(name) in known), (None, ""))
        if name is None:
            raise BadRequestError(
                f"expected {what} as CONCEPT={what.upper()}, CONCEPT one of those to forget, found {pair!r}"
            )
        found.setdefault(name_key(name), []).append(value)
    return found


def _show_forgotten(edit: "scapre.Edit") -> None:
    from scapre.methods import find_method

    told = edit.diagnostics
    leads = find_method(edit.spec.method).leads_to_anchor
    left = {name: f"{share:.0%}" if leads else "n/a" for name, share in told["residual_response"].items()}
    Console().print(table_of_targets(told["anchors"], answer_left=left))
    typer.echo(
        "answer left: how much of what told the concept from what it becomes; pictures decide, see `scapre judge`"
    )
    for warning in told["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"edit {edit.digest} of base {edit.base_digest}")


def _show_preflight(found: "scapre.Preflight", targets: list["scapre.Concept"]) -> None:
    console = Console()
    chosen_as = {target.name: _why(target, found) for target in targets}
    console.print(table_of_targets(found.anchors, chosen_as=chosen_as), table_of_risks(found.at_risk))
    console.print(
        f"retained: {len(found.retain_named)} named, {len(found.retain_found)} found in the vocabulary; "
        f"{len(found.synonyms_left_out)} left out as synonyms, {len(found.strangers_left_out)} as unknown words"
    )
    if found.synonyms_left_out:
        shown = ", ".join(found.synonyms_left_out[:SYNONYMS_SHOWN])
        console.print(f"taken for the concepts themselves, so not retained: {shown}", markup=False, emoji=False)
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _why(target: "scapre.Concept", found: "scapre.Preflight") -> str:
    """Returns how it was chosen what a target becomes."""
    from scapre.neighbours import KINDS_WITHOUT_NEIGHBOUR

    anchor = found.anchors[target.name]
    if target.anchor is not None:
        return "the anchor given"
    if target.kind in KINDS_WITHOUT_NEIGHBOUR:
        return "the default"
    if anchor in found.retain_named:
        return "nearest name to retain"
    return "a near name found" if anchor in found.retain_found else "the default"


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
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequestError(f"expected a text file with one name a line, found {path}: {error}") from error
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
