"""The worked examples for CI in the README: they parse, and what they call is there."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flows import cli
from infra.settings import PREFIX, Settings

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]
SCRIPTS = re.findall(r"^ *-(?: run:)? (scapre .*)$", README, re.MULTILINE)


def parameters_of(command: str) -> tuple[Any, list[str]]:
    """Returns the command that a line calls, and the line's arguments after it."""
    found: Any = typer.main.get_command(cli.app)
    words = shlex.split(command)[1:]
    while hasattr(found, "commands"):
        assert words[0] in found.commands, command
        found, words = found.commands[words[0]], words[1:]
    return found, words


def check_line(command: str) -> None:
    found, words = parameters_of(command)
    known = {option for parameter in found.params for option in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word in known, f"{command}: {word} is no option"
    found.make_context(found.name, words, resilient_parsing=False)  # refuses a missing or surplus argument


def test_there_is_one_example_for_each_service():
    assert any(True in example or "on" in example for example in EXAMPLES)  # YAML 1.1 reads the key `on` as true
    assert any("script" in job for example in EXAMPLES for job in example.values() if isinstance(job, dict))
    assert len(SCRIPTS) == 2


@pytest.mark.parametrize("line", SCRIPTS)
def test_every_command_in_them_exists_with_those_options(line):
    check_line(line)


@pytest.mark.parametrize("line", ["scapre gate x --junits y", "scapre gate", "scapre gates x"])
def test_a_line_that_is_wrong_would_be_noticed(line):
    with pytest.raises((AssertionError, cli._ClickException)):
        check_line(line)


def test_every_setting_in_them_exists():
    settings = set(re.findall(rf"^ +({PREFIX}[A-Z0-9_]+):", README, re.MULTILINE))
    assert settings
    assert settings <= {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
