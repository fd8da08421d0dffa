"""JSON and JUnit XML: nothing but a pass looks like a pass."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flows.exit_codes import ExitCode
from flows.reporting import exit_code_of, junit_xml, write_reports
from validation import Judgement, Policy

sys.path.insert(0, str(Path(__file__).parents[1] / "validation"))
import colour_world
from judged import good, judged

QUICK = Policy(probes_per_retained=16, probes_per_hidden=2, probes_per_style=40, probes_per_target_base=4)
OUTCOMES = {
    "passed": (good, {}, None, "passed", ExitCode.OK),
    "failed": (colour_world.Painter, {}, "failure", "failed", ExitCode.FAILED),
    "inconclusive": (
        good,
        {"probes_per_retained": 2, "probes_per_style": 2},
        "error",
        "inconclusive",
        ExitCode.INCONCLUSIVE,
    ),
    "void": (lambda: good().blackened(), {}, "error", "void", ExitCode.COULD_NOT_JUDGE),
}


@pytest.fixture(scope="module")
def judgements(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Judgement]:
    return {
        name: judged(make(), tmp_path_factory.mktemp(name), policy=QUICK.model_copy(update=changes))
        for name, (make, changes, *_) in OUTCOMES.items()
    }


@pytest.mark.parametrize("name", OUTCOMES)
def test_each_verdict_has_its_element_and_its_exit_code(judgements, name) -> None:
    judgement, (_, _, tag, kind, code) = judgements[name], OUTCOMES[name]
    assert exit_code_of(judgement) == code
    suite = ElementTree.fromstring(junit_xml(judgement)).find("testsuite")
    verdict = suite.findall("testcase")[-1]
    assert verdict.get("name") == judgement.verdict
    elements = [child for child in verdict if child.tag in ("failure", "error", "skipped")]
    assert [(child.tag, child.get("type")) for child in elements] == ([(tag, kind)] if tag else [])
    assert (int(suite.get("failures")) + int(suite.get("errors")) == 0) == (name == "passed")


def test_there_is_one_test_case_for_each_gate_and_counts_agree(judgements) -> None:
    for judgement in judgements.values():
        suite = ElementTree.fromstring(junit_xml(judgement)).find("testsuite")
        cases = suite.findall("testcase")
        assert [case.get("classname") for case in cases] == [*(gate.gate for gate in judgement.gates), "verdict"]
        assert (
            len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases) == int(suite.get("tests"))
        )
        for gate, case in zip(judgement.gates, cases, strict=False):
            is_clean = not any(child.tag in ("failure", "error") for child in case)
            assert is_clean == (gate.verdict == "passed" or not gate.is_gated)
            assert (case.find("skipped") is not None) == (not gate.is_gated)
            assert gate.reason in "".join(case.itertext())


def test_json_holds_verdict_gates_and_exit_code_and_the_same_judgement_gives_the_same_bytes(
    judgements, tmp_path
) -> None:
    write_reports(judgements["failed"], json_path=tmp_path / "a.json", junit_path=tmp_path / "deep" / "a.xml")
    write_reports(judgements["failed"], json_path=tmp_path / "b.json")
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert (content["verdict"], content["exit_code"], content["format"]) == ("failed", 1, "scapre-judgement/1")
    assert len(content["gates"]) == len(judgements["failed"].gates)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "deep" / "a.xml").read_bytes() == junit_xml(judgements["failed"])


def test_no_path_writes_nothing(judgements, tmp_path) -> None:
    write_reports(judgements["passed"])
    assert not list(tmp_path.iterdir())


def test_markup_and_control_characters_in_a_reason_do_no_harm(judgements) -> None:
    judgement = judgements["failed"]
    evil = replace(judgement.gates[0], reason="<failure/> \x00 \x1b[31m & ]]>", concept='"<x>"')
    suite = ElementTree.fromstring(junit_xml(replace(judgement, gates=(evil,)))).find("testsuite")
    assert len(suite) == 2
    assert "<failure/> � �[31m & ]]>" in "".join(suite[0].itertext())
