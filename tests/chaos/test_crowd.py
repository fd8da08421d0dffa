"""Takedowns and rollbacks that start at once: nothing is lost, and the champion holds them all."""

from pathlib import Path

import pytest

from tests.chaos.crowd import crowd


@pytest.mark.slow
def test_eight_takedowns_and_two_rollbacks_at_once_lose_nothing(tmp_path: Path):
    assert crowd(tmp_path) == []


@pytest.mark.postgres
def test_eight_takedowns_and_two_rollbacks_at_once_lose_nothing_on_postgresql(tmp_path: Path, postgres_server: str):
    assert crowd(tmp_path, ledger_url=postgres_server) == []
