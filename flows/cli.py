"""The command line `scapre`: nouns, then verbs.

Guarantees:
    1. Every refusal is one sentence on standard error and an exit code of `flows.exit_codes`; never a traceback.
    2. Heavy libraries are imported by the commands that need them, so `--help` answers at once.
"""

import errno
import logging
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.commands import (
    approval,
    attack,
    benchmark,
    compliance,
    demo,
    engine,
    evidence,
    export,
    gate,
    judge,
    ledger,
    packs,
    plan,
    registry,
    requests,
    status,
    takedown,
    watchdog,
)
from flows.exit_codes import ExitCode

# typer carries its own copy of click; its base classes are reached by the one name that typer exports
_ClickException: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="scapre",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Make a text-to-image model forget named concepts, prove that it did, and only then promote it.\n\n"
    "Exit codes: 0 passed or nothing to do, 1 failed, 2 inconclusive, 3 could not judge, 4 bad input, "
    "5 storage or database, 6 waiting for approval, 130 interrupted.",
)
app.command("unlearn")(engine.unlearn)
app.command("dials")(engine.dials)
app.command("export")(export.export)
app.command("judge")(judge.judge)
app.command("attack")(attack.attack)
app.command("demo")(demo.demo)
app.command("benchmark")(benchmark.benchmark)
app.command("approvals")(approval.approvals)
app.command("approve")(approval.approve)
app.command("decline")(approval.decline)
app.command("rollback")(registry.rollback)
app.command("gate")(gate.gate)
app.command("watchdog")(watchdog.watchdog)
app.command("plan")(plan.plan)
app.command("status")(status.status)
app.command("settings")(engine.settings)
app.add_typer(requests.app, name="request")
app.add_typer(requests.base_app, name="base")
app.add_typer(takedown.app, name="takedown")
app.add_typer(compliance.app, name="compliance")
app.add_typer(compliance.incident_app, name="incident")
app.add_typer(registry.app, name="registry")
app.add_typer(ledger.app, name="ledger")
app.add_typer(packs.app, name="packs")
app.add_typer(evidence.app, name="evidence")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("scapre"))
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; exits with an `ExitCode`."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code; every known error becomes one sentence on standard error."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        from infra.settings import load_settings, quiet_environment

        quiet_environment(load_settings())
        # it has no variable for that, and sets the level itself on import
        logging.getLogger("great_expectations.data_context.types.base").addFilter(_is_warning)
        result = typer.main.get_command(app).main(args=arguments, prog_name="scapre", standalone_mode=False)
        if result == ExitCode.INTERRUPTED:  # typer has made an exit code of it
            raise KeyboardInterrupt
        return int(result) if isinstance(result, int) else ExitCode.OK
    except _ClickException as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # the help is printed already
            said = error.format_message().rstrip(".")
            asked = getattr(getattr(error, "ctx", None), "command_path", None) or "scapre"
            errors.print(f"scapre: {said}; see `{asked} --help`", markup=False)
        return ExitCode.BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        errors.print("scapre: interrupted; run the same command again to go on from what is finished", markup=False)
        return ExitCode.INTERRUPTED
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        errors.print(f"scapre: {error}", markup=False)
        return code


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _exit_code(error: Exception) -> ExitCode | None:
    from flows.errors import FlowError
    from infra.errors import DigestMismatchError, InfraError, NotFoundError, SettingsError
    from scapre.errors import ScaPreError
    from validation.errors import PolicyError, ProbeError, ValidationError

    if _is_full_disk(error):
        return ExitCode.INFRASTRUCTURE
    bad_input = (FlowError, ScaPreError, SettingsError, DigestMismatchError, NotFoundError, PolicyError, ProbeError)
    if isinstance(error, bad_input):
        return ExitCode.BAD_INPUT
    if isinstance(error, ValidationError):
        return ExitCode.COULD_NOT_JUDGE
    if isinstance(error, InfraError):
        return ExitCode.INFRASTRUCTURE
    return None


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk or quota is behind an error, whoever wrote and whatever was made of it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    main()
