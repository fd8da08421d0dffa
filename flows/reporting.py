"""A judgement for machines: one JSON document, and JUnit XML as CI services read it.

Guarantees:
    1. Nothing but `passed` can look like a pass: a failed gate is a failure, a failed control and an inconclusive gate
       are errors of type `void` and `inconclusive`, and what is only reported is skipped.
    2. The last test case is the verdict itself, so that a reason that belongs to no gate is seen too.
    3. A file is whole or not there; the same judgement gives the same bytes, but for the seconds it took.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from flows.exit_codes import ExitCode
from infra.atomic import written_beside
from validation import GateResult, Judgement

FORMAT = "scapre-judgement/1"
SUITE = "scapre judge"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot carry."""


def exit_code_of(judgement: Judgement) -> ExitCode:
    """Returns the exit code that stands for a judgement."""
    if judgement.is_void:
        return ExitCode.COULD_NOT_JUDGE
    return {"passed": ExitCode.OK, "failed": ExitCode.FAILED}.get(judgement.verdict, ExitCode.INCONCLUSIVE)


def write_reports(judgement: Judgement, *, json_path: Path | None = None, junit_path: Path | None = None) -> None:
    """Writes a judgement as JSON, as JUnit XML, or as both; a file that is there is replaced."""
    if json_path is not None:
        content = json.dumps(describe_judgement(judgement), indent=2, sort_keys=True, allow_nan=False)
        _write(json_path, f"{content}\n".encode())
    if junit_path is not None:
        _write(junit_path, junit_xml(judgement))


def describe_judgement(judgement: Judgement) -> dict[str, Any]:
    """Returns everything but tables and pictures as plain JSON, with the exit code that stands for it."""
    return {"format": FORMAT, "exit_code": int(exit_code_of(judgement)), **judgement.describe()}


def junit_xml(judgement: Judgement) -> bytes:
    """Returns a judgement as JUnit XML: one test case for each gate, and one for the verdict."""
    suite = ElementTree.Element("testsuite", name=SUITE)
    for gate in judgement.gates:
        case = ElementTree.SubElement(suite, "testcase", classname=gate.gate, name=_clean(_name(gate)))
        _answer(case, *_outcome(gate), [gate.reason])
    verdict = ElementTree.SubElement(suite, "testcase", classname="verdict", name=judgement.verdict)
    kind = "void" if judgement.is_void else judgement.verdict
    tag = {"passed": None, "failed": "failure"}.get(kind, "error")
    _answer(verdict, tag, kind, [reason.text for reason in judgement.reasons])
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f"./testcase/{tag}"))))
    suite.set("tests", str(len(suite)))
    suite.set("time", f"{sum(judgement.seconds.values()):.3f}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _outcome(gate: GateResult) -> tuple[str | None, str]:
    """Returns the element that tells a gate's answer, none for a pass, and its type."""
    if not gate.is_gated:
        return "skipped", "reported"
    if gate.verdict == "passed":
        return None, "passed"
    if gate.is_control:
        return "error", "void"
    return ("failure", "failed") if gate.verdict == "failed" else ("error", "inconclusive")


def _answer(case: ElementTree.Element, tag: str | None, kind: str, reasons: Sequence[str]) -> None:
    text = _clean("\n".join(reasons))
    if tag is None:
        ElementTree.SubElement(case, "system-out").text = text
        return
    message = _clean(reasons[0]) if reasons else kind
    ElementTree.SubElement(case, tag, type=kind, message=f"{kind}: {message}").text = text


def _name(gate: GateResult) -> str:
    parts = [gate.concept, gate.attack or (gate.pack if gate.concept else gate.role)]
    return ", ".join(part for part in parts if part) or gate.gate


def _clean(text: str) -> str:
    return _NOT_XML.sub("�", text)


def _write(path: Path, content: bytes) -> None:
    with written_beside(path) as opened:
        opened.write(content)
