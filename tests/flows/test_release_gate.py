"""The release gate on the reference model: real ledger, registry, object store and Prefect."""

import json
from xml.etree import ElementTree

import pytest
import yaml
from promoted import POLICY, REFERENCE, REQUEST

import scapre as engine
from flows import candidate as candidates
from flows import cli, intake
from flows.exit_codes import ExitCode
from flows.requests import TakedownRequest
from flows.services import Services, open_services
from infra.chain import EntryKind
from infra.settings import load_settings


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Services:
    opened = open_services(load_settings({}, home=tmp_path_factory.mktemp("gate") / "home"))
    candidates.register_base(opened, "reference", REFERENCE)
    intake.add_request(opened, TakedownRequest.model_validate(REQUEST))
    return opened


@pytest.fixture
def scapre(services, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SCAPRE_HOME", str(services.settings.home))
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump(POLICY), encoding="utf-8")

    def run(*arguments: str) -> tuple[int, str]:
        code = cli.run(["gate", str(REFERENCE), "--policy", str(policy), *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_a_gate_with_nothing_to_ask_does_not_pass(scapre, tmp_path, monkeypatch):
    monkeypatch.setenv("SCAPRE_HOME", str(tmp_path / "empty"))
    code, said = scapre()
    assert code == ExitCode.COULD_NOT_JUDGE
    assert "at least one active request" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--out", "new"), "`unlearn` and `out` together"),
        (("--unlearn",), "`unlearn` and `out` together"),
        (("--dial", "ridge=1"), "no `method` or `dials` without `unlearn`"),
        (("--method", "scapre-encoder"), "no `method` or `dials` without `unlearn`"),
        (("--base", "nowhere"), "nowhere"),
        (("--unlearn", "--out", "."), "expected a new folder"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_drawn(scapre, services, options, said):
    code, errors = scapre(*options)
    assert code == ExitCode.BAD_INPUT
    assert said in errors.replace("\n", " ")
    assert services.ledger.entries(kind=EntryKind.RELEASE_JUDGED) == []


def test_a_dry_run_says_what_would_be_asked(scapre, services):
    code, said = scapre("--dry-run")
    assert code == ExitCode.OK
    assert "1 must be gone, 2 named ones must survive" in said
    assert services.ledger.entries(kind=EntryKind.RELEASE_JUDGED) == []


def test_a_model_that_draws_what_was_taken_down_fails_and_is_recorded_once(scapre, services, tmp_path):
    documents = tmp_path / "gate.json", tmp_path / "gate.xml"
    for _ in range(2):
        code, said = scapre("--json", str(documents[0]), "--junit", str(documents[1]))
        assert code == ExitCode.FAILED, said
    assert json.loads(documents[0].read_text())["verdict"] == "failed"
    assert int(ElementTree.parse(documents[1]).find("testsuite").get("failures")) >= 1
    (entry,) = services.ledger.entries(kind=EntryKind.RELEASE_JUDGED)
    assert entry.body["verdict"] == "failed"
    assert "rose" not in entry.body_text


def test_a_new_base_is_unlearned_and_appears_only_because_it_passes(scapre, services, tmp_path):
    out = tmp_path / "release"
    code, said = scapre("--unlearn", "--out", str(out), "--dial", "vocabulary=0")
    assert code == ExitCode.OK, said
    assert f"written     {out}" in said.splitlines()
    engine.inspect_checkpoint(out)
    entry = services.ledger.entries(kind=EntryKind.RELEASE_JUDGED)[-1]
    assert entry.body["unlearned"]
    assert entry.body["digest"] != entry.body["source_digest"]
    assert services.open_registry().champion() is None
