"""Requests dropped into the object store, on a folder and on a real S3 server."""

import json
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from flows import inbox, intake
from flows.cases import cases
from flows.requests import load_request
from flows.services import open_services
from infra.errors import PermanentFailure, TransientFailure
from infra.settings import load_settings

EXAMPLE = Path(__file__).parents[2] / "flows" / "demo_request.yaml"


@pytest.fixture(scope="module")
def s3_settings():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {"s3_endpoint": f"http://{host}:{port}", "s3_access_key_id": "key", "s3_secret_access_key": "secret"}
    client = boto3.client(
        "s3",
        endpoint_url=options["s3_endpoint"],
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="models")
    yield {**options, "s3_region": "us-east-1", "s3_attempts": 1}
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def services(tmp_path, request):
    more = {}
    if request.param == "s3":
        more = {"object_store_uri": f"s3://models/{tmp_path.name}", **request.getfixturevalue("s3_settings")}
    return open_services(load_settings({}, home=tmp_path / "home", **more))


def test_a_dropped_request_is_recorded_once_and_moved(services):
    services.store.put_bytes("inbox/mail/17.yaml", EXAMPLE.read_bytes())
    taken = inbox.take_in(services)
    request_id = load_request(EXAMPLE).request_id
    assert [(one.request_id, one.is_new) for one in taken] == [(request_id, True)]
    assert services.store.list_keys("inbox/") == []
    assert services.store.get_bytes(f"inbox-taken/{request_id}/mail/17.yaml") == EXAMPLE.read_bytes()
    services.store.put_bytes("inbox/again.yaml", EXAMPLE.read_bytes())
    assert [(one.request_id, one.is_new) for one in inbox.take_in(services)] == [(request_id, False)]
    assert [case.channel for case in cases(services).values()] == ["inbox"]


def test_what_is_no_request_is_moved_aside_with_the_reason_and_stops_nobody(services):
    services.store.put_bytes("inbox/a.yaml", b"ground: whim\n")
    services.store.put_bytes("inbox/b.json", b"{")
    services.store.put_bytes("inbox/c.yaml", b"x" * ((1 << 20) + 1))
    services.store.put_bytes("inbox/d.yaml", EXAMPLE.read_bytes())
    taken = inbox.take_in(services)
    assert [one.request_id is None for one in taken] == [True, True, True, False]
    assert services.store.list_keys("inbox/") == []
    assert len(cases(services)) == 1
    refused = dict(inbox.refused_files(services))
    assert sorted(key.rpartition("/")[2] for key in refused) == ["a.yaml", "b.json", "c.yaml"]
    for key in refused:
        reason = json.loads(services.store.get_bytes(inbox.reason_key(key)))["reason"]
        assert reason.startswith("expected")
        assert "\n" not in reason


@pytest.mark.parametrize("dies_at", ["put_bytes", "discard"])
def test_a_look_that_is_cut_off_is_finished_by_the_next(services, dies_at, monkeypatch):
    services.store.put_bytes("inbox/a.yaml", EXAMPLE.read_bytes())

    def cut(*_arguments):
        raise TransientFailure("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(type(services.store), dies_at, cut)
        with pytest.raises(TransientFailure):
            inbox.take_in(services)
    assert services.store.list_keys("inbox/") == ["inbox/a.yaml"]
    before = services.ledger.entries()
    assert [one.is_new for one in inbox.take_in(services)] == [False]
    assert services.store.list_keys("inbox/") == []
    assert services.ledger.entries() == before


def test_nothing_but_the_inbox_can_be_discarded(services):
    services.store.put_bytes("bases/reference/base.json", b"{}")
    with pytest.raises(PermanentFailure, match="ever deleted"):
        services.store.discard("bases/reference/base.json")
    services.store.discard("inbox/nothing-there.yaml")
    assert services.store.exists("bases/reference/base.json")


def test_the_same_request_by_command_inbox_and_form_is_one_effect(services):
    from flows.request_flows import request_takedown

    request_id, _ = intake.add_request(services, load_request(EXAMPLE))
    before = services.ledger.entries()
    services.store.put_bytes("inbox/a.yaml", EXAMPLE.read_bytes())
    assert [one.request_id for one in inbox.take_in(services)] == [request_id]
    schema = request_takedown.parameters.model_dump()
    assert schema["required"] == ["request"]
    assert {"ground", "subjects", "requester"} <= set(schema["definitions"]["TakedownRequest"]["properties"])
    assert services.ledger.entries() == before
