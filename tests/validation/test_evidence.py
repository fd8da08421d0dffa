import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import judged as worlds
import pandas as pd
import pytest
import rfc8785
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from validation import Judgement
from validation.evidence import (
    EvidenceError,
    core_files,
    evidence_digest,
    read_evidence,
    verify_evidence,
    write_evidence,
)
from validation.rederiving import read_measures, verdict_differences
from validation.report import render_report

FILES = (
    "verdict.json",
    "measures.csv",
    "probes.csv",
    "policy.json",
    "protocol.json",
    "gx.json",
    "report.html",
    "edit.json",
)


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    judgement = worlds.judged(worlds.good(), tmp_path_factory.mktemp("pictures"))
    assert judgement.verdict == "passed"
    return judgement


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    judgement = worlds.judged(worlds.bad(), tmp_path_factory.mktemp("pictures"))
    assert judgement.verdict == "failed"
    return judgement


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / "static").mkdir()
    (folder / "index.html").write_text("<p>Data Docs</p>")
    (folder / "static" / "style.css").write_text("p {}")
    return folder


@pytest.fixture(scope="module")
def whole(passed: Judgement, site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tests leave as they find it."""
    return write(passed, tmp_path_factory.mktemp("evidence") / "bundle", site)


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return shutil.copytree(whole, tmp_path / "bundle")


def write(judgement: Judgement, out: Path, site: Path | None = None) -> Path:
    return write_evidence(
        judgement, out, report_html=render_report(judgement), data_docs=site, extra={"edit.json": {"method": "scapre"}}
    )


def change(path: Path, edit: Callable[[Any], None]) -> None:
    document = json.loads(path.read_bytes())
    edit(document)
    path.write_bytes(rfc8785.dumps(document))


def forge_manifest(folder: Path) -> None:
    """Makes the manifest fit the changed files, as a careful forger would."""
    record = json.loads((folder / "manifest.json").read_bytes())
    for entry in record["files"]:
        content = (folder / entry["path"]).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_bytes(rfc8785.dumps(record))


def test_a_bundle_holds_everything_and_verifies(whole: Path):
    names = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert names == {*FILES, "manifest.json", "data_docs/index.html", "data_docs/static/style.css"}
    assert verify_evidence(whole) == []
    assert verify_evidence(str(whole), expected_digest=evidence_digest(whole)) == []


def test_a_failed_and_an_inconclusive_judgement_verify_too(failed: Judgement, tmp_path: Path):
    unsure = worlds.judged(worlds.unsure(), tmp_path / "pictures")
    assert unsure.verdict == "inconclusive"
    assert not unsure.is_void
    for judgement in (failed, unsure):
        assert verify_evidence(write(judgement, tmp_path / judgement.verdict)) == []


def test_a_void_judgement_verifies_as_void(tmp_path: Path):
    void = worlds.judged(worlds.good().blackened(), tmp_path / "pictures")
    assert void.is_void
    assert verify_evidence(write(void, tmp_path / "void")) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_changed_byte_anywhere_is_named(whole: Path, data: st.DataObject):
    name = data.draw(st.sampled_from([*FILES, "manifest.json", "data_docs/index.html"]))
    path = whole / name
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = content[place] ^ data.draw(st.integers(1, 255))
    try:
        path.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        differences = verify_evidence(whole)
    finally:
        path.write_bytes(content)
    assert differences
    assert name == "manifest.json" or any(line.startswith(f"{name}: changed") for line in differences)


@pytest.mark.parametrize("name", [*FILES, "manifest.json", "data_docs/index.html"])
def test_a_missing_file_is_named(bundle: Path, name: str):
    (bundle / name).unlink()
    assert any(line.startswith(f"{name}: missing") for line in verify_evidence(bundle))


@pytest.mark.parametrize("name", ["notes.txt", "data_docs/more.html", ".hidden"])
def test_an_extra_file_is_named(bundle: Path, name: str):
    (bundle / name).write_text("more")
    assert verify_evidence(bundle) == [f"{name}: extra: the manifest does not list it"]


def test_a_link_is_named_and_not_followed(bundle: Path, tmp_path: Path):
    elsewhere = tmp_path / "policy.json"
    (bundle / "policy.json").rename(elsewhere)
    (bundle / "policy.json").symlink_to(elsewhere)
    assert any(line.startswith("policy.json: extra: a link") for line in verify_evidence(bundle))


def test_a_manifest_with_other_spacing_is_named(bundle: Path):
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=2))
    assert verify_evidence(bundle) == ["manifest.json: changed: not the canonical manifest of these files"]


def test_no_folder_at_all_is_a_difference(tmp_path: Path):
    assert "missing" in verify_evidence(tmp_path / "nowhere")[0]


@pytest.mark.parametrize(
    ("name", "edit", "named"),
    [
        ("verdict.json", lambda d: d.update(verdict="failed"), "verdict does not follow: it says failed"),
        ("verdict.json", lambda d: d.update(is_void=True), "is_void"),
        ("verdict.json", lambda d: d["reasons"][0].update(text="trust me"), "its reasons"),
        ("verdict.json", lambda d: d["gates"][2].update(upper=0.001), "gates|says"),
        ("verdict.json", lambda d: d["gates"].pop(), "derived, not stated"),
        ("verdict.json", lambda d: d["gates"].append(d["gates"][0]), "expected .* gates"),
        ("verdict.json", lambda d: d.pop("gates"), "cannot be derived"),
        ("policy.json", lambda d: d.update(residual_limit=0.5), "its policy is not that of policy.json"),
        ("policy.json", lambda d: d.update(probes_per_target=640), "expected 640 pictures"),
        ("policy.json", lambda d: d.update(unknown=1), "cannot be derived.*unknown"),
        ("protocol.json", lambda d: d["targets"].pop(), "which the protocol does not name"),
        ("protocol.json", lambda d: d["targets"].append("ghost"), "ghost"),
        ("protocol.json", lambda d: d.update(probes_digest="0" * 64), "prompts and seeds"),
        ("gx.json", lambda d: d["broken"].update(rule="gone"), "expectations"),
    ],
)
def test_a_forged_document_is_named_even_with_a_fitting_manifest(
    bundle: Path, tmp_path: Path, name: str, edit: Callable[[Any], None], named: str
):
    change(bundle / name, edit)
    forge_manifest(bundle)
    assert re.search(named, "\n".join(verify_evidence(bundle)))


def test_a_failure_cannot_be_declared_a_pass(failed: Judgement, tmp_path: Path):
    folder = write(failed, tmp_path / "bundle")
    for gate in (record := json.loads((folder / "verdict.json").read_bytes()))["gates"]:
        gate["verdict"] = "passed"
    record |= {"verdict": "passed", "reasons": [{"kind": "passed", "text": "all gates and controls passed"}]}
    (folder / "verdict.json").write_bytes(rfc8785.dumps(record))
    report = (folder / "report.html").read_text().replace('data-verdict="failed"', 'data-verdict="passed"')
    (folder / "report.html").write_text(report)
    forge_manifest(folder)
    differences = verify_evidence(folder)
    assert "verdict.json: verdict does not follow: it says passed, the measures lead to failed" in differences
    assert any("forgetting of tiger" in line for line in differences)


def test_a_report_of_another_verdict_is_named(bundle: Path, tmp_path: Path):
    path = bundle / "report.html"
    path.write_text(path.read_text().replace('data-verdict="passed"', 'data-verdict="failed"'))
    forge_manifest(bundle)
    assert verify_evidence(bundle) == [
        "report.html: verdict does not follow: it reports failed, verdict.json says passed"
    ]


def _candidates(table: pd.DataFrame, concept: str) -> pd.Index:
    return table.index[(table["concept"] == concept) & (table["model"] == "candidate")]


def without_last(table: pd.DataFrame, concept: str) -> pd.DataFrame:
    return table.drop(index=_candidates(table, concept)[-1])


def with_one_more(table: pd.DataFrame, concept: str) -> pd.DataFrame:
    last = _candidates(table, concept)[-1]
    more = table.loc[[last]].assign(seed=table.loc[last, "seed"] + 1)
    return pd.concat([table.loc[:last], more, table.loc[last + 1 :]])


def hit_at_the_end(table: pd.DataFrame, concept: str) -> pd.DataFrame:
    changed = table.copy()
    changed.loc[_candidates(table, concept)[-1], ["is_hit", "top_label"]] = (True, concept)
    return changed


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda t: t.assign(is_hit=False), "is_hit of 'tiger' does not agree with top_label"),
        (lambda t: t.iloc[:-3], "pictures of .* found"),
        (lambda t: pd.concat([t, t.tail(1)]), "prompts and seeds"),
        (lambda t: t.assign(seed=t["seed"] + 1), "prompts and seeds"),
        (lambda t: t.drop(columns="is_blank"), "not a table of measures"),
        (lambda t: t.iloc[:0], "prompts and seeds"),
        (lambda t: without_last(t, "tiger"), "sampling rule asks for 32 pictures of 'tiger'.*found 31"),
        (lambda t: with_one_more(t, "tiger"), "sampling rule asks for 32 pictures of 'tiger'.*found 33"),
        (lambda t: hit_at_the_end(t, "tiger"), "sampling rule asks for 40 pictures of 'tiger'.*found 32"),
    ],
)
def test_forged_measures_are_named(
    bundle: Path, tmp_path: Path, edit: Callable[[pd.DataFrame], pd.DataFrame], named: str
):
    path = bundle / "measures.csv"
    edit(read_measures(path.read_bytes())).to_csv(path, index=False, lineterminator="\n")
    forge_manifest(bundle)
    assert re.search(named, "\n".join(verify_evidence(bundle)))


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: [*lines[:-1]],  # fewer were planned
        lambda lines: [lines[0].replace("seed", "noise"), *lines[1:]],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    ],
)
def test_another_plan_is_named(bundle: Path, edit: Callable[[list[str]], list[str]]):
    path = bundle / "probes.csv"
    path.write_text("".join(edit(path.read_text().splitlines(keepends=True))))
    forge_manifest(bundle)
    assert any(line.startswith("probes.csv: changed") for line in verify_evidence(bundle))


def test_a_wholly_forged_bundle_needs_the_digest_from_elsewhere(passed: Judgement, failed: Judgement, tmp_path: Path):
    recorded = evidence_digest(write(failed, tmp_path / "true"))
    forged = write(passed, tmp_path / "forged")
    assert verify_evidence(forged) == []
    assert verify_evidence(forged, expected_digest=recorded)[0].startswith("manifest.json: changed: expected digest")


def test_the_same_judgement_again_keeps_the_bundle_that_is_there(passed: Judgement, site: Path, tmp_path: Path):
    first = evidence_digest(write(passed, tmp_path / "bundle", site))
    again = replace(passed, seconds={"digests": 99.0})
    assert evidence_digest(write(again, tmp_path / "bundle")) == first


def test_evidence_is_never_overwritten(passed: Judgement, failed: Judgement, bundle: Path, tmp_path: Path):
    with pytest.raises(EvidenceError, match=r"found another's \(.*verdict.json"):
        write(failed, bundle)
    (bundle / "gx.json").unlink()
    with pytest.raises(EvidenceError, match=r"gx\.json: missing"):
        write(passed, bundle)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(EvidenceError, match="holds neither"):
        write(passed, tmp_path / "home")


def test_a_write_that_breaks_off_leaves_nothing(passed: Judgement, tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        write_evidence(passed, tmp_path / "bundle", report_html="", data_docs=tmp_path / "no site")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../edit.json", "a/b.json", "verdict.json", "manifest.json", ".x.json", "x.html", ""])
def test_a_further_file_needs_a_free_plain_name(passed: Judgement, tmp_path: Path, name: str):
    with pytest.raises(EvidenceError, match="expected a free name"):
        write_evidence(passed, tmp_path / "bundle", report_html="", extra={name: {}})


@pytest.mark.parametrize("value", [float("nan"), {1: 2}, object(), 2**60])
def test_a_further_file_is_plain_json(passed: Judgement, tmp_path: Path, value: Any):
    with pytest.raises(EvidenceError, match=r"expected plain JSON for edit\.json"):
        write_evidence(passed, tmp_path / "bundle", report_html="", extra={"edit.json": value})


def test_the_same_judgement_gives_the_same_bytes(passed: Judgement):
    assert core_files(passed) == core_files(passed)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12))
@example(name="null")
@example(name="NaN")
@example(name='"a", b\r\nc')
def test_measures_survive_their_file_whatever_a_concept_is_called(passed: Judgement, name: str):
    table = passed.measures.head(3).assign(concept=name)
    content = table.to_csv(index=False, lineterminator="\n").encode()
    pd.testing.assert_frame_equal(read_measures(content), table, check_dtype=False, check_exact=True)


def test_the_quality_gate_is_derived_again_from_the_scores(tmp_path: Path):
    policy = worlds.POLICY.model_copy(update={"quality_margin": 0.002})
    judgement = worlds.judged(worlds.good().faded(0.2), tmp_path / "pictures", policy=policy, with_texts=True)
    folder = write_evidence(judgement, tmp_path / "bundle", report_html=render_report(judgement))
    assert verify_evidence(folder) == []
    documents = {name: json.loads((folder / name).read_bytes()) for name in FILES[:6] if name.endswith(".json")}
    better = judgement.measures.assign(image_text_score=1.0)
    planned = (folder / "probes.csv").read_bytes()
    found = verdict_differences(better.to_csv(index=False, lineterminator="\n").encode(), planned, documents)
    assert any("quality of retained" in difference for difference in found)
    assert any("it says failed" in difference for difference in found)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    """Asked by further packs, one of which has nothing to ask."""
    policy = worlds.POLICY.model_copy(update={"further_packs": {"misspelling": 32, "composition": 48, "explicit": 32}})
    return worlds.judged(worlds.good(), tmp_path_factory.mktemp("pictures"), policy=policy)


def test_evidence_of_further_packs_verifies(wide: Judgement, tmp_path: Path):
    assert {gate.pack for gate in wide.gates if gate.gate == "forgetting"} == {
        "direct",
        "misspelling",
        "composition",
        "explicit",
    }
    assert verify_evidence(write(wide, tmp_path / "bundle")) == []


def test_a_further_pack_whose_pictures_are_taken_out_is_named(wide: Judgement, tmp_path: Path):
    folder = write(wide, tmp_path / "bundle")
    table = read_measures((folder / "measures.csv").read_bytes())
    short = table.drop(table.index[table["pack"] == "composition"][-5:])
    short.to_csv(folder / "measures.csv", index=False, lineterminator="\n")
    forge_manifest(folder)
    assert any("pictures of 'dog' (composition) by the" in line for line in verify_evidence(folder))


@pytest.mark.parametrize("form", ["scapre-evidence/1", "scapre-evidence/99"])
def test_another_format_is_named_and_its_verdict_not_read_as_ours(bundle: Path, form: str):
    (bundle / "probes.csv").unlink()  # format 1 had none

    def restate(manifest: Any) -> None:
        manifest["format"] = form
        manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != "probes.csv"]

    change(bundle / "manifest.json", restate)
    assert [d.split(":")[:2] for d in verify_evidence(bundle)] == [["manifest.json", " format"]]
    assert form in verify_evidence(bundle)[0]
    with pytest.raises(EvidenceError, match="expected evidence of format"):
        read_evidence(bundle)
    (bundle / "measures.csv").write_bytes(b"x")
    assert any(d.startswith("measures.csv: changed") for d in verify_evidence(bundle))


def test_documents_are_read_back_as_written(bundle: Path, passed: Judgement):
    documents = read_evidence(bundle)
    assert documents["verdict.json"]["verdict"] == "passed"
    assert documents["protocol.json"] == json.loads(core_files(passed)["protocol.json"])
