"""Settings of the whole suite."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

pytest_plugins = ["tests.postgres"]

# Prefect reads these once, on import, which the first test module that imports a flow brings about
_prefect_home = tempfile.mkdtemp(prefix="scapre-tests-prefect-")
atexit.register(shutil.rmtree, _prefect_home, ignore_errors=True)
os.environ.setdefault("PREFECT_HOME", _prefect_home)
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("DO_NOT_TRACK", "1")

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
