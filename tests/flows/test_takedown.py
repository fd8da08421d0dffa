"""The whole path on the reference model, as a user runs it: processes, S3 on loopback, a kill in the middle."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

REQUEST = {
    "received": "2026-01-06",
    "ground": "internal",
    "jurisdiction": "EU",
    "requester": {"name": "A", "role": "artist", "contact": "a@example.org"},
    "subjects": [{"concept": "rose", "kind": "object", "anchor": "tulip"}],
    "retain": ["tulip", "sunflower", "hibiscus"],
}
POLICY = {
    "probes_per_target": 32,
    "probes_per_target_base": 4,
    "probes_per_retained": 4,
    "probes_per_hidden": 0,
    "probes_per_style": 1,
    "retained_concept_margin": 0.5,
    "retained_margin": 0.5,  # a dozen pictures bound nothing tighter; the limits themselves are tested elsewhere
}
SURVIVORS = 16  # about a quarter of the pictures of such a run
TAKEDOWN = ("takedown", "run", "--dial", "vocabulary=0")  # what the engine finds is retained, hence rendered


class Installation:
    """One home folder and the commands run in it."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        # one thread each: two teams of threads on two cores wait for one another most of the time
        own = {"SCAPRE_HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "OMP_NUM_THREADS": "1"}
        self.environment = {**os.environ, **own, **settings}
        self.policy = home.parent / f"{home.name}-policy.yaml"
        self.policy.write_text(yaml.safe_dump(POLICY), encoding="utf-8")
        self.request = home.parent / f"{home.name}-request.yaml"
        self.request.write_text(yaml.safe_dump(REQUEST), encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "flows.cli", *arguments]

    def run(self, *arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def prepare(self) -> None:
        reference = Path(__file__).parents[2] / "infra" / "reference" / "model"
        assert self.run("base", "add", "reference", str(reference))[0] == 0
        assert self.run("request", "add", str(self.request))[0] == 0

    def takedown(self, *arguments: str) -> tuple[int, str, str]:
        return self.run(*TAKEDOWN, "--policy", str(self.policy), *arguments)

    def kinds(self) -> list[str]:
        output = self.run("ledger", "show", "--json")[1]
        return [json.loads(line)["kind"] for line in output.splitlines()]

    def pictures(self) -> dict[str, int]:
        return {str(p.relative_to(self.home)): p.stat().st_mtime_ns for p in self.home.glob("pictures/**/*.png")}


@pytest.fixture(scope="module")
def s3_server():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1"
    )
    client.create_bucket(Bucket="models")
    yield url, client
    server.stop()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, s3_server):
    url, _ = s3_server
    installation = Installation(
        tmp_path_factory.mktemp("s3") / "home",
        SCAPRE_OBJECT_STORE_URI="s3://models/scapre",
        SCAPRE_S3_ENDPOINT=url,
        SCAPRE_S3_REGION="us-east-1",
        SCAPRE_S3_ACCESS_KEY_ID="key",
        SCAPRE_S3_SECRET_ACCESS_KEY="secret",
    )
    installation.prepare()
    return installation, installation.takedown()


def test_a_request_becomes_a_promoted_model_with_everything_in_s3(finished, s3_server):
    installation, (code, output, errors) = finished
    assert code == 0, output + errors
    assert "version 1 is champion" in output
    assert installation.kinds() == [
        "request_added",
        "request_triaged",
        "request_validated",
        "candidate_built",
        "judged",
        "approved",
        "promoted",
    ]
    assert installation.run("ledger", "verify")[0] == 0
    _, client = s3_server
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="models")["Contents"]]
    assert any(key.endswith("checkpoint/manifest.json") for key in keys)
    assert any("/evidence/" in key for key in keys)
    assert not any("rose" in key for key in keys)


def test_the_log_of_the_run_says_what_was_done_and_names_no_concept(finished):
    installation, _ = finished
    with contextlib.closing(sqlite3.connect(installation.home / "prefect" / "prefect.db")) as database:
        lines = [message for (message,) in database.execute("SELECT message FROM log ORDER BY timestamp")]
    said = "\n".join(lines)
    assert [line.split()[0] for line in lines] == ["base", "candidate", "passed:", "MLflow", "promoted,"]
    assert "rose" not in said


def test_a_finished_run_is_not_repeated(finished):
    installation, _ = finished
    before, kinds = installation.pictures(), installation.kinds()
    code, output, _ = installation.takedown()
    assert code == 0
    assert "nothing was done" in output
    assert installation.pictures() == before
    assert installation.kinds() == kinds


def test_a_request_that_cannot_be_met_leaves_the_champion_untouched(finished):
    installation, _ = finished
    code, output, errors = installation.takedown("--dial", "erasure_strength=0")
    assert code in (1, 2), output + errors
    assert "champion untouched" in output
    assert installation.kinds()[-1] == "refused"
    assert "version 1" in installation.run("status")[1]


def test_a_dry_run_changes_nothing(finished):
    installation, _ = finished
    before, kinds = installation.pictures(), installation.kinds()
    code, output, _ = installation.takedown("--dry-run", "--dial", "ridge=0.5")
    assert code == 0
    assert "rose" in output
    assert installation.pictures() == before
    assert installation.kinds() == kinds


@pytest.fixture
def killed_run(tmp_path):
    """A run killed while it renders; what it started lives on beside the next run until the test ends."""
    installation = Installation(tmp_path / "home")
    installation.prepare()
    process = subprocess.Popen(
        installation.command(*TAKEDOWN, "--policy", str(installation.policy)),
        env=installation.environment,
        stdout=subprocess.DEVNULL,  # not a pipe: a server left behind would keep it open
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 300
        while len(installation.pictures()) < SURVIVORS and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        process.kill()
        process.wait(30)
        yield installation
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow  # tests/chaos kills in more places, without Prefect's run pages
def test_a_killed_run_goes_on_from_the_finished_pictures(killed_run):
    installation = killed_run
    survivors = installation.pictures()
    assert len(survivors) >= SURVIVORS
    assert "promoted" not in installation.kinds()

    code, output, errors = installation.takedown()
    assert code == 0, output + errors
    assert survivors.items() <= installation.pictures().items()
    assert installation.kinds().count("promoted") == 1
    assert installation.run("ledger", "verify")[0] == 0
