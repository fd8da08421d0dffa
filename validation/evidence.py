"""Evidence: one folder with all that a verdict rests on, and a check that needs nothing but the folder.

Guarantees:
    1. A bundle is written beside its place and then renamed: it is whole or it is not there.
    2. Evidence is never overwritten. Writing the same judgement again keeps the bundle that is there, with its digest.
    3. The manifest lists every other file with size and SHA-256; the manifest's own SHA-256 is the evidence's digest.
    4. A bundle of another format is named as such; its digests are compared, its verdict is not read as ours.
    5. Verification recomputes every digest and derives the verdict again from the measures and the policy, with the
       gates that the judge uses. It names each difference, and changes nothing.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import rfc8785

from validation.errors import ValidationError
from validation.judgement import Judgement

FORMAT = "scapre-evidence/2"
"""Counts up when what a bundle must hold changes: 2 holds the planned probes, from which sampling is derived again."""
MANIFEST = "manifest.json"
MEASURES = "measures.csv"
PLANNED = "probes.csv"
ATTACKED = "attacks.csv"
"""The pictures drawn under attack; only in bundles of judgements that tried one."""
REPORT = "report.html"
DATA_DOCS = "data_docs"
_TABLES = (MEASURES, PLANNED)
_CORE = ("verdict.json", *_TABLES, "policy.json", "protocol.json", "gx.json")
_TIMES = "seconds"
"""The one entry of `verdict.json` in which two judgements of the same thing differ."""
_EXTRA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.json")
_REPORTED_VERDICT = re.compile(rb'<html[^>]*\bdata-verdict="([a-z]+)"')

JSON = Any
"""What `json` can write: mappings with text keys, lists, text, numbers, booleans, None."""


class EvidenceError(ValidationError):
    """Evidence that cannot be written as asked, or a folder that is not evidence."""


def write_evidence(
    judgement: Judgement,
    out: Path,
    *,
    report_html: str,
    data_docs: Path | None = None,
    extra: Mapping[str, JSON] | None = None,
) -> Path:
    """Writes a bundle and returns its folder; a bundle of the same judgement that is already there is kept.

    Args:
        judgement: What was decided.
        out: The bundle's folder; its parent is made.
        report_html: The report, from `validation.report.render_report`.
        data_docs: Folder of the Great Expectations site, copied in.
        extra: Further files by name (`NAME.json`), such as the edit's facts and the request's.

    Raises:
        EvidenceError: Another judgement's evidence, a damaged bundle or a folder of something else is in the way; a
            name or a value of `extra` cannot be written.
    """
    files = core_files(judgement) | {REPORT: report_html.encode("utf-8")} | _extra_files(extra or {})
    if out.exists():
        _refuse_other(out, files)
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for name, content in files.items():
            _write(beside / name, content)
        if data_docs is not None:
            shutil.copytree(data_docs, beside / DATA_DOCS)
        _write(beside / MANIFEST, _manifest(beside))
        beside.chmod(0o755)  # mkdtemp makes a folder that only its owner may read; an auditor is somebody else
        beside.rename(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return out


def core_files(judgement: Judgement) -> dict[str, bytes]:
    """Returns the verdict and the files it is derived from, by name; the same judgement gives the same bytes."""
    record = judgement.describe()
    protocol, expectations = record.pop("protocol"), record.pop("expectations")
    attacked = {} if judgement.attacks is None else {ATTACKED: _table(judgement.attacks)}
    return attacked | {
        "verdict.json": _canonical(record, "verdict.json"),
        MEASURES: _table(judgement.measures),
        PLANNED: _table(judgement.planned),
        "policy.json": _canonical(protocol["policy"], "policy.json"),
        "protocol.json": _canonical(protocol, "protocol.json"),
        "gx.json": _canonical(expectations, "gx.json"),
    }


def _table(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode("utf-8")


def evidence_digest(folder: Path) -> str:
    """Returns SHA-256 of the bundle's manifest, the digest that stands for all of it.

    Raises:
        EvidenceError: The folder holds no manifest.
    """
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise EvidenceError(f"expected {MANIFEST} in {folder}, found none; name an evidence folder") from error


def read_evidence(folder: Path) -> dict[str, Any]:
    """Returns the documents of a bundle by file name, as they are: nothing is verified.

    Raises:
        EvidenceError: It is no bundle, or one of another format.
    """
    if not (folder / MANIFEST).is_file():
        raise EvidenceError(f"expected {MANIFEST} in {folder}, found none; name an evidence folder")
    stated = _stated_format(folder)
    if stated != FORMAT:
        raise EvidenceError(
            f"expected evidence of format {FORMAT} in {folder}, found {stated}; read it with the release that wrote it"
        )
    try:
        return {path.name: json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}
    except (OSError, ValueError, RecursionError) as error:
        raise EvidenceError(f"expected JSON documents in {folder}, found {error}; fetch the evidence again") from error


def verify_evidence(folder: Path | str, *, expected_digest: str | None = None) -> list[str]:
    """Returns every difference between a bundle and what it says of itself; an empty list means it verifies.

    Args:
        folder: The bundle.
        expected_digest: The evidence's digest as a ledger or a signature states it. Without it, a bundle that somebody
            made up as a whole, digests included, verifies.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return [f"{folder}: missing: expected a folder with evidence"]
    differences = _manifest_differences(folder)
    stated = _stated_format(folder)
    if expected_digest is not None and (folder / MANIFEST).is_file():
        found = evidence_digest(folder)
        if found != expected_digest:
            differences.append(f"{MANIFEST}: changed: expected digest {expected_digest}, found {found}")
    if stated not in (None, FORMAT):
        differences.append(
            f"{MANIFEST}: format: expected {FORMAT}, found {stated}: the verdict was not derived again; verify it with "
            "the release that wrote it"
        )
        return differences
    missing = [name for name in (*_CORE, REPORT) if not (folder / name).is_file()]
    differences += [f"{name}: missing: no evidence is whole without it" for name in missing]
    if not missing:
        from validation.rederiving import verdict_differences  # the judge's own code: takes seconds to import

        documents: dict[str, Any] = {}
        for name in _CORE:
            if name.endswith(".json"):
                try:
                    documents[name] = json.loads((folder / name).read_bytes())
                except (ValueError, RecursionError) as error:
                    differences.append(f"{name}: changed: not JSON ({error})")
        if len(documents) == len(_CORE) - len(_TABLES):
            tables = ((folder / name).read_bytes() for name in _TABLES)
            attacked = (folder / ATTACKED).read_bytes() if (folder / ATTACKED).is_file() else None
            differences += verdict_differences(*tables, documents, attacks_csv=attacked)
            differences += _report_differences(folder, documents["verdict.json"])
    return list(dict.fromkeys(differences))


def _manifest_differences(folder: Path) -> list[str]:
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        return [f"{MANIFEST}: missing: nothing says what belongs to the bundle"]
    content = path.read_bytes()
    try:
        stated = {str(entry["path"]): (entry["bytes"], entry["sha256"]) for entry in json.loads(content)["files"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return [f"{MANIFEST}: changed: not a manifest ({type(error).__name__})"]
    found = {name: (path.stat().st_size, _sha256(path)) for name, path in _files(folder)}
    links = [name for name, path in _entries(folder) if path.is_symlink()]
    differences = [f"{name}: extra: a link, which evidence does not hold" for name in links]
    differences += [f"{name}: missing: the manifest lists it" for name in stated if name not in found]
    differences += [f"{name}: extra: the manifest does not list it" for name in found if name not in stated]
    differences += [
        f"{name}: changed: expected {stated[name][0]} bytes with SHA-256 {stated[name][1]}, found "
        f"{found[name][0]} bytes with {found[name][1]}"
        for name in found
        if name in stated and found[name] != stated[name]
    ]
    if not differences and content != _manifest(
        folder, _stated_format(folder)
    ):  # a repeated key, another order, an added entry
        differences.append(f"{MANIFEST}: changed: not the canonical manifest of these files")
    return differences


def _stated_format(folder: Path) -> str | None:
    """Returns the format that the manifest states; None where there is no manifest that could be read."""
    try:
        return str(json.loads((folder / MANIFEST).read_bytes())["format"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _report_differences(folder: Path, verdict: Any) -> list[str]:
    found = _REPORTED_VERDICT.search((folder / REPORT).read_bytes())
    stated = verdict.get("verdict") if isinstance(verdict, dict) else None
    if found is None or found.group(1).decode() != stated:
        reported = found.group(1).decode() if found else "no verdict"
        return [f"{REPORT}: verdict does not follow: it reports {reported}, verdict.json says {stated}"]
    return []


def _refuse_other(out: Path, files: Mapping[str, bytes]) -> None:
    if not (out / MANIFEST).is_file():
        raise EvidenceError(
            f"expected a new folder or one with evidence, found {out}, which holds neither; choose another"
        )
    if damage := _manifest_differences(out):
        raise EvidenceError(
            f"expected no evidence or intact evidence at {out}, found {'; '.join(damage)}; keep it and "
            "choose another folder"
        )
    names = sorted({*_CORE, ATTACKED} & {*files, *(path.name for path in out.iterdir())})
    differing = [name for name in names if _kept(out / name) != _without_times(name, files.get(name))]
    if differing:
        raise EvidenceError(
            f"expected no evidence or evidence of this judgement at {out}, found another's ({', '.join(differing)} "
            "differ); evidence is never overwritten: choose another folder"
        )


def _kept(path: Path) -> Any:
    return _without_times(path.name, path.read_bytes() if path.is_file() else None)


def _without_times(name: str, content: bytes | None) -> Any:
    if content is None or name in (*_TABLES, ATTACKED):
        return content
    record = json.loads(content)
    if name == "gx.json":  # its own description of a run holds the run's time and identifiers
        record.pop("detail", None)
    record.pop(_TIMES, None)
    return record


def _extra_files(extra: Mapping[str, JSON]) -> dict[str, bytes]:
    reserved = {*_CORE, MANIFEST, ATTACKED}
    for name in extra:
        if not _EXTRA_NAME.fullmatch(name) or name in reserved:
            raise EvidenceError(
                f"expected a free name such as `edit.json` for a further file, found {name!r}; rename it"
            )
    return {name: _canonical(value, name) for name, value in extra.items()}


def _canonical(value: JSON, name: str) -> bytes:
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise EvidenceError(f"expected plain JSON for {name}, found {error}; convert the value") from error


def _manifest(folder: Path, form: str | None = FORMAT) -> bytes:
    files = [{"path": name, "bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in _files(folder)]
    return _canonical({"format": form, "files": files}, MANIFEST)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields the regular files other than the manifest, sorted by their path in the bundle; links are no files."""
    return (
        (name, path) for name, path in _entries(folder) if path.is_file() and not path.is_symlink() and name != MANIFEST
    )


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    paths = [Path(root) / name for root, folders, names in os.walk(folder) for name in (*folders, *names)]
    return iter(sorted((path.relative_to(folder).as_posix(), path) for path in paths))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
