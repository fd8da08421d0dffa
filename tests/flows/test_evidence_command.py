"""`scapre evidence`: what a bundle says, and whether it holds, without a server."""

import shutil
import sys
from pathlib import Path

import pytest

from flows.cli import run
from flows.exit_codes import ExitCode
from validation.evidence import evidence_digest, write_evidence
from validation.report import render_report

sys.path.insert(0, str(Path(__file__).parents[1] / "validation"))
from judged import good, judged


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence")
    judgement = judged(good(), folder / "pictures")
    return write_evidence(judgement, folder / "bundle", report_html=render_report(judgement))


def test_an_untouched_bundle_verifies_with_the_digest_of_the_ledger(bundle, capsys) -> None:
    digest = evidence_digest(bundle)
    assert run(["evidence", "verify", str(bundle), "--digest", digest]) == ExitCode.OK
    assert f"verifies, digest {digest}" in capsys.readouterr().out


def test_every_difference_is_named_and_the_exit_code_is_1(bundle, tmp_path, capsys) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "measures.csv").write_bytes((copy / "measures.csv").read_bytes().replace(b"True", b"False", 1))
    (copy / "policy.json").unlink()
    assert run(["evidence", "verify", str(copy), "--digest", "0" * 64]) == ExitCode.FAILED
    said = capsys.readouterr().out
    for name in ("measures.csv: changed", "policy.json: missing", "manifest.json: changed: expected digest 0000"):
        assert name in said


def test_show_tells_verdict_reasons_gates_and_digests_and_that_it_verified_nothing(bundle, capsys) -> None:
    assert run(["evidence", "show", str(bundle)]) == ExitCode.OK
    said = capsys.readouterr().out
    for text in (
        "verdict     passed",
        "because     all",
        "forgetting",
        "retention",
        evidence_digest(bundle),
        "not verified",
    ):
        assert text in said


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_folder_without_evidence_is_named(tmp_path, capsys, command) -> None:
    assert run(["evidence", command, str(tmp_path)]) in (ExitCode.BAD_INPUT, ExitCode.FAILED)
    said = capsys.readouterr()
    assert "manifest.json" in said.out + said.err
