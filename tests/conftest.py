"""Settings of the whole suite."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)  # machines are shared and noisy
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _environment_put_back() -> Iterator[None]:
    """Commands that run in this process tell libraries where home is; the next test must not inherit that."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
