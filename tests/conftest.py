"""Settings of the whole suite."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)  # machines are shared and noisy
settings.load_profile("steady")


@pytest.fixture(autouse=True, scope="module")
def _environment_put_back_after_module() -> Iterator[None]:
    """A module's own fixtures are set up before those of a test, and run commands as well."""
    yield from _environment_kept()


@pytest.fixture(autouse=True)
def _environment_put_back() -> Iterator[None]:
    """Commands that run in this process tell libraries where home is; the next test must not inherit that."""
    yield from _environment_kept()


def _environment_kept() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
