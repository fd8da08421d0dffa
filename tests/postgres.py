"""A PostgreSQL server of the tests' own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def program(name: str) -> str | None:
    found = shutil.which(name, path=os.pathsep.join(str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")))
    return found or shutil.which(name)


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[str]:
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("needs initdb and pg_ctl of PostgreSQL")
    pytest.importorskip("psycopg2")
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if user:
        shutil.chown(folder, user, user)

    def run(*command: str) -> None:
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

    run(initdb, "-D", str(folder / "data"), "-A", "trust", "-U", "scapre", "-N")
    options = f"-c listen_addresses='' -k {folder} -c fsync=off"
    run(pg_ctl, "-D", str(folder / "data"), "-o", options, "-l", str(folder / "log"), "-w", "start")
    yield f"postgresql+psycopg2://scapre@/postgres?host={folder}"
    run(pg_ctl, "-D", str(folder / "data"), "-m", "immediate", "-w", "stop")
    shutil.rmtree(folder)
