import copy
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flows.errors import BadRequestError
from flows.requests import load_request, parse_request

EXAMPLE = Path(__file__).parents[2] / "flows" / "demo_request.yaml"


def example() -> dict:
    return yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))


def test_the_example_is_a_valid_request_for_ten_concepts():
    request = load_request(EXAMPLE)
    assert len(request.subjects) == 10
    assert request.request_id.startswith("req-")


@given(st.randoms(use_true_random=False))
def test_the_same_request_in_another_order_is_the_same_request(random):
    document = example()
    shuffled = copy.deepcopy(document)
    random.shuffle(shuffled["subjects"])
    random.shuffle(shuffled["retain"])
    for subject in shuffled["subjects"]:
        random.shuffle(subject["aliases"])
    assert parse_request(shuffled, source="x").request_id == parse_request(document, source="x").request_id


FIRST_FORMAT = {
    "received": "2026-01-05",
    "ground": "copyright",
    "jurisdiction": "EU",
    "requester": {"name": "A", "role": "artist", "contact": "a@example.org"},
    "subjects": [{"concept": "rose", "kind": "object", "aliases": ["rosa"]}],
    "retain": ["tulip"],
}


def test_a_request_of_the_first_format_keeps_the_identifier_it_always_had():
    request = parse_request(FIRST_FORMAT, source="x")
    assert request.format == 1
    assert request.request_id == "req-64b1f27168b72e4e"
    assert parse_request(json.loads(request.canonical_bytes()), source="x").request_id == request.request_id
    assert parse_request({**FIRST_FORMAT, "received": "2026-01-06"}, source="x").request_id != request.request_id


def test_when_a_request_comes_in_is_no_part_of_what_it_is():
    first, later = (
        parse_request({**example(), "received_at": at}, source="x") for at in (None, "2026-02-01T00:00:00Z")
    )
    assert first.request_id == later.request_id
    assert parse_request({**example(), "reference": "second"}, source="x").request_id != first.request_id


def test_yaml_and_json_are_the_same_request(tmp_path):
    document = json.loads(json.dumps(example(), default=str))
    path = tmp_path / "request.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert load_request(path).request_id == load_request(EXAMPLE).request_id


def test_another_request_has_another_identifier_which_names_nothing():
    document = example()
    first = parse_request(document, source="x").request_id
    document["subjects"] = document["subjects"][1:]
    second = parse_request(document, source="x").request_id
    assert first != second
    assert all(subject["concept"] not in first for subject in example()["subjects"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("ground"), "ground"),
        (lambda d: d.pop("requester"), "requester"),
        (lambda d: d["subjects"][0].update(kind="person"), "'person'"),
        (lambda d: d["subjects"][0].update(concept=" "), "subjects.0.concept"),
        (lambda d: d.update(subjects=[]), "subjects"),
        (lambda d: d.update(retain=["tiger"]), "['tiger'] as both"),
        (lambda d: d.update(retain=["Tigre"]), "['tigre'] as both"),
        (lambda d: d["subjects"].append(dict(d["subjects"][0])), "more than once"),
        (lambda d: d.update(retain=["cat", ""]), "retain.1"),
        (lambda d: d.update(colour="red"), "colour"),
        (lambda d: d.update(received_at="soon"), "received_at"),
        (lambda d: d.update(received_at="2026-01-05T10:00:00"), "received_at"),
        (lambda d: d.update(received="2026-01-05"), "received_at"),
        (lambda d: d.update(format=1), "format 1"),
        (lambda d: d.update(format=3), "format"),
        (lambda d: d.update(jurisdiction="europe"), "jurisdiction"),
        (lambda d: d.update(statements=["oath"]), "statements.0"),
        (lambda d: d["subjects"][0].update(languages=["Spanish"]), "subjects.0.languages.0"),
        (lambda d: d.update(evidence=[{"sha256": "abc", "locator": "vault"}]), "evidence.0.sha256"),
    ],
)
def test_a_malformed_request_is_refused_with_its_place_named(change, said):
    document = example()
    change(document)
    with pytest.raises(BadRequestError) as refusal:
        parse_request(document, source="request.yaml")
    assert said in str(refusal.value)
    assert "request.yaml" in str(refusal.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"- a\n- b\n", b"a: [1\n", b""])
def test_a_file_that_holds_no_request_is_refused(tmp_path, content):
    path = tmp_path / "request.yaml"
    path.write_bytes(content)
    with pytest.raises(BadRequestError, match="expected"):
        load_request(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadRequestError, match="No such file"):
        load_request(tmp_path / "nowhere.yaml")
