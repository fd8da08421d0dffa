"""The command line before any command: what it loads, and its version."""

import subprocess
import sys
from importlib.metadata import version

from flows.cli import run
from flows.exit_codes import ExitCode

HEAVY = {"torch", "transformers", "diffusers", "mlflow", "prefect", "great_expectations"}


def _loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(ran.stdout.split())


def test_help_loads_nothing_heavy() -> None:
    assert not _loaded("import flows.cli") & HEAVY
    assert _loaded("import scapre.solver") & HEAVY  # the control


def test_version_needs_no_command(capsys) -> None:
    assert run(["--version"]) == ExitCode.OK
    assert capsys.readouterr().out.strip() == version("scapre")
