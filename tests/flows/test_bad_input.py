"""Bad input: hundreds of malformed requests, policies, tables and ledgers, each refused in one line that says where.

Every generated document is either valid, which the model itself decides, or refused; none crashes, and none of those
refused leaves anything behind.
"""

import json
from pathlib import Path

import pytest
import yaml

from flows import intake
from flows.deadlines import DEFAULT_TABLE, load_deadlines
from flows.errors import BadRequestError
from flows.requests import load_request, read_request_file
from flows.services import open_services
from infra.chain import verify_export
from infra.settings import load_settings
from tests.flows.case_entries import Tale
from tests.flows.malformed import malformed
from validation import load_policy
from validation.errors import PolicyError

FLOWS = Path(__file__).parents[2] / "flows"
REQUEST = {
    "format": 2,
    "received_at": "2026-01-05T10:00:00Z",
    "ground": "privacy",
    "jurisdiction": "EU",
    "requester": {"name": "A", "role": "artist", "contact": "a@example.org"},
    "identity_check": {"method": "seen", "result": "passed", "by": "desk", "at": "2026-01-05T10:00:00Z"},
    "statements": ["good_faith"],
    "signature": "A",
    "subjects": [{"concept": "tiger", "kind": "object", "aliases": ["tigre"], "languages": ["es"], "anchor": "cat"}],
    "retain": ["lion"],
    "evidence": [{"sha256": "0" * 64, "locator": "vault"}],
    "base": "reference",
    "affected": [{"name": "m", "version": "1", "digest": "0" * 64}],
    "scope": "all",
}
POLICY = yaml.safe_load((FLOWS / "policy.yaml").read_text(encoding="utf-8"))
TABLE = yaml.safe_load(DEFAULT_TABLE.read_text(encoding="utf-8"))
TABLE["regimes"] = {name: TABLE["regimes"][name] for name in ("dmca",)}


def require_one_line(error: Exception, names: tuple[str, ...]) -> None:
    said = str(error)
    assert "\n" not in said
    assert "expected" in said
    assert any(name in said for name in names), (names, said)


def test_malformed_requests_are_refused_by_their_field_and_nothing_is_recorded(tmp_path):
    services = open_services(load_settings({}, home=tmp_path / "home"))
    refused = 0
    for names, document in malformed(REQUEST):
        try:
            request = read_request_file(json.dumps(document).encode(), name="request.json")
        except BadRequestError as error:
            require_one_line(error, names)
            refused += 1
        else:
            assert request.request_id.startswith("req-")
    assert refused >= 300
    assert services.ledger.entries() == []
    assert intake.add_request(services, read_request_file(json.dumps(REQUEST).encode(), name="x.json"))[1]


@pytest.mark.parametrize(("document", "read", "least"), [(POLICY, load_policy, 100), (TABLE, load_deadlines, 200)])
def test_malformed_policies_and_tables_are_refused_by_their_field(document, read, least, tmp_path):
    path = tmp_path / "document.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    read(path)
    refused = 0
    for names, bad in malformed(document):
        path.write_text(yaml.safe_dump(bad), encoding="utf-8")
        try:
            read(path)
        except PolicyError as error:
            require_one_line(error, names)
            refused += 1
    assert refused >= least


NO_DOCUMENTS = [
    b"",
    b"\xff\xfe",
    b"- a\n",
    b"a: [1\n",
    b"a: 1\na: 2\n",
    b"? [a]\n: b\n",
    b"a: 2026-13-45\n",
    b"!!python/object:os.system {}\n",
    b"a: &a [*a]\n",
    b"[\n" * 400,
    b"{a:\n" * 400,
    b"\x00",
    b"%YAML 9.9\n---\na: 1\n",
    b"42\n",
    b"a: !!binary xx\n",
]


@pytest.mark.parametrize("content", NO_DOCUMENTS)
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_what_is_no_document_is_refused_in_one_line(content, suffix, tmp_path):
    path = tmp_path / f"document{suffix}"
    path.write_bytes(content)
    for read, refusal in ((load_request, BadRequestError), (load_deadlines, PolicyError), (load_policy, PolicyError)):
        with pytest.raises(refusal) as error:
            read(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)


def test_malformed_ledgers_are_refused_by_their_line(tmp_path):
    lines = [json.loads(entry.to_line()) for entry in Tale().added().accepted().entries]
    path, refused = tmp_path / "ledger.jsonl", 0
    for number, line in enumerate(lines):
        for names, bad in malformed(line):
            written = [json.dumps(bad if place == number else each) for place, each in enumerate(lines)]
            path.write_text("".join(f"{each}\n" for each in written), encoding="utf-8")
            faults = verify_export(path)
            assert number + 1 in {fault.sequence for fault in faults} or names[0] == "sequence"
            assert all(str(fault).isprintable() for fault in faults)
            refused += 1
    assert refused >= 200


@pytest.mark.parametrize("option", [["--by", "", "--reason", "x"], ["--by", "dana", "--reason", " "], ["--by", "dana"]])
def test_a_decision_without_a_name_or_reason_is_refused_by_its_option(option, tmp_path, capsys, monkeypatch):
    from flows.cli import run

    monkeypatch.setenv("SCAPRE_HOME", str(tmp_path / "home"))
    path = tmp_path / "request.json"
    path.write_text(json.dumps(REQUEST), encoding="utf-8")
    assert run(["request", "add", str(path)]) == 0
    request_id = capsys.readouterr().out.split()[0]
    assert run(["request", "triage", request_id, "--by", "dana"]) == 0
    capsys.readouterr()
    assert run(["request", "reject", request_id, *option]) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ("by" if option[1] == "" else "reason") in said
