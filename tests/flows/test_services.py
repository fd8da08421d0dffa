"""What every command opens first."""

from pathlib import Path

import pytest

from flows.services import open_services
from infra.settings import load_settings


def test_prefect_finds_its_folder_wherever_it_was_told_to_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "not" / "yet"))
    open_services(load_settings({}, home=tmp_path / "home"))
    assert (tmp_path / "not" / "yet").is_dir()
