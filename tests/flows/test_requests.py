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
        (lambda d: d.update(retain=["cat", ""]), "empty"),
        (lambda d: d.update(colour="red"), "colour"),
        (lambda d: d.update(received="soon"), "received"),
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
