"""`infra/prefect.yaml` against the flows, and against Prefect's own models and server."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter

ROOT = Path(__file__).parents[2]
FILE = ROOT / "infra" / "prefect.yaml"
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["deployments"]
NAMES = [f"{each['entrypoint']}/{each['name']}" for each in DEPLOYMENTS]


def flow_of(deployment: dict[str, Any]) -> Any:
    module, _, name = deployment["entrypoint"].rpartition(".")
    return getattr(import_module(module), name)


def test_the_three_moments_are_deployed_and_two_of_them_have_a_clock():
    clocks = {each["entrypoint"].rpartition(".")[2]: each.get("schedules") for each in DEPLOYMENTS}
    assert {"takedown", "compliance", "release_gate"} <= clocks.keys()
    assert clocks["takedown"]
    assert clocks["compliance"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=NAMES)
def test_each_entrypoint_is_a_flow_and_its_parameters_fit(deployment):
    from prefect.flows import Flow
    from prefect.utilities.callables import parameter_schema

    flow = flow_of(deployment)
    assert isinstance(flow, Flow)
    for name, value in (deployment.get("parameters") or {}).items():
        annotation = flow.fn.__annotations__[name]
        assert isinstance(TypeAdapter(annotation).validate_python(value), BaseModel)
    assert set(deployment.get("parameters") or {}) <= parameter_schema(flow).properties.keys()


def test_wrong_parameters_would_be_noticed():
    deployment = next(each for each in DEPLOYMENTS if each["entrypoint"].endswith(".compliance"))
    with pytest.raises(ValueError, match="max_minuts"):
        TypeAdapter(flow_of(deployment).fn.__annotations__["order"]).validate_python({"max_minuts": 5})


def test_prefects_own_model_reads_the_file():
    from prefect.cli.deploy._models import PrefectYamlModel

    read = PrefectYamlModel.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))
    assert [each.name for each in read.deployments] == [each["name"] for each in DEPLOYMENTS]


_DEPLOY = """
import os, subprocess, sys
from prefect.testing.utilities import prefect_test_harness

with prefect_test_harness(server_startup_timeout=300):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.settings import PREFECT_API_URL

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="scapre", type="process"))
    subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml"],
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
        check=True,
    )
    with get_client(sync_client=True) as client:
        for each in client.read_deployments():
            print("DEPLOYED", each.entrypoint, each.name, each.work_queue_name, len(each.schedules), sep="|")
        for each in client.read_automations():
            print("AUTOMATION", each.name, each.enabled, sep="|")
"""


@pytest.mark.slow
def test_prefect_deploys_all_of_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _DEPLOY], capture_output=True, text=True, timeout=400, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {tuple(line.split("|")[1:]) for line in done.stdout.splitlines() if line.startswith("DEPLOYED|")}
    assert found == {
        (each["entrypoint"], each["name"], each["work_pool"]["work_queue_name"], str(len(each["schedules"])))
        for each in DEPLOYMENTS
    }
    assert "AUTOMATION|scapre-incident-starts-a-whole-compliance-run|True" in done.stdout
