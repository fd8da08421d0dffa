"""What the README says is so."""

import re
from pathlib import Path

import pytest

from flows import cli
from flows.exit_codes import ExitCode

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_example_runs_and_leaves_the_tiger_out(monkeypatch):
    monkeypatch.chdir(ROOT)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, names)
    edit = names["edit"]
    assert edit.spec.concepts[0].name == "tiger"
    edit.revert(names["pipe"])


@pytest.mark.parametrize("line", sorted(set(re.findall(r"`(scapre [a-z]+(?: [a-z]+)?)", README))))
def test_every_command_named_is_there(line, capsys):
    assert cli.run([*line.split()[1:], "--help"]) == ExitCode.OK
    assert "Usage" in capsys.readouterr().out
