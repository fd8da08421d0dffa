"""Takedown requests: the typed record, which is also the form that Prefect shows.

Guarantees:
    1. A request's identifier is derived from its content: the same request twice is one request, whichever way and
       whenever it comes in.
    2. The identifier says nothing about who asked or what for.
    3. Nothing malformed gets in: unknown fields, kinds and empty names are refused with the place named.
    4. Documents of format 1 stay readable, under the identifiers they always had.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from flows.errors import BadRequestError
from validation.documents import read_content
from validation.errors import PolicyError

Kind = Literal["object", "style", "identity", "unsafe"]
Ground = Literal["copyright", "likeness", "privacy", "safety", "contract", "internal"]
Statement = Literal["good_faith", "accuracy", "authority", "non_consent"]
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")
]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

FORMAT = 2
LARGEST_BYTES = 1 << 20
_JURISDICTION = re.compile(r"[A-Z]{2,3}(-[A-Z0-9]{1,3})?")
PERSONAL_FIELDS = frozenset({"requester", "identity_check", "signature", "evidence", "reference"})
"""What is erased once a case is over, even while the concepts stay forgotten."""
_FIRST_FORMAT = frozenset({"received", "ground", "jurisdiction", "requester", "subjects", "retain", "base"})
_FIRST_REQUESTER = ("name", "role", "contact")
_FIRST_SUBJECT = ("concept", "kind", "aliases", "anchor")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Requester(_Record):
    """Who asks; kept beside the ledger, never in it."""

    name: Name = Field(description="person or organisation that asks")
    role: Name = Field(description="for example: artist, agent, rights holder, safety team")
    contact: Name = Field(description="where an answer reaches them")
    representative_of: Name | None = Field(default=None, description="on whose behalf, if not their own")


ERASED = Requester(name="erased", role="erased", contact="erased")
"""Stands where personal data was erased on schedule."""


class IdentityCheck(_Record):
    """Whether the requester is who they say, proportionately checked."""

    method: Name = Field(description="for example: account login, document seen, signature compared")
    result: Literal["passed", "failed", "pending"]
    by: Name = Field(description="who checked")
    at: AwareDatetime = Field(description="when, ISO 8601 with time zone")


class Evidence(_Record):
    """Proof that somebody else keeps: what it is by digest and where it lies, never the thing itself."""

    sha256: Digest = Field(description="64 hexadecimal digits")
    locator: Name = Field(description="where whoever may see it finds it")


class AffectedModel(_Record):
    """A model that the request is about, beside the base that is unlearned."""

    name: Name
    version: Name | None = None
    digest: Digest | None = None


class Subject(_Record):
    """One concept that must go."""

    concept: Name = Field(description="everyday name of the concept")
    kind: Kind = Field(description="object, style, identity or unsafe")
    aliases: tuple[Name, ...] = Field(default=(), max_length=200, description="other names, languages, misspellings")
    languages: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")], ...] = Field(
        default=(), max_length=50, description="languages of the names, BCP 47, for example en, es, zh-Hans"
    )
    anchor: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        default=None, description="what to draw instead; empty: nothing in particular; default: a near retained name"
    )


class TakedownRequest(_Record):
    """A request that a model forget one or more concepts."""

    format: Literal[1, 2] = Field(default=FORMAT, description="of this record; 2 unless it says `received`")
    received: date | None = Field(default=None, description="format 1 only: the day it came in")
    received_at: AwareDatetime | None = Field(
        default=None, description="when it came in, ISO 8601 with time zone; default: when it is recorded"
    )
    reference: Name | None = Field(default=None, description="the requester's own reference; another one, another case")
    regime: Name | None = Field(default=None, description="row of the table of deadlines; default: the one that fits")
    ground: Ground = Field(description="why the concepts must go")
    jurisdiction: Name = Field(min_length=2, description="where the ground applies, for example EU, US, US-CA")
    requester: Requester
    identity_check: IdentityCheck | None = Field(default=None, description="whether they are who they say")
    statements: tuple[Statement, ...] = Field(default=(), max_length=20, description="statements that they make")
    signature: Name | None = Field(default=None, description="the name under which they signed, if they did")
    subjects: tuple[Subject, ...] = Field(min_length=1, max_length=1000, description="what must go")
    retain: tuple[Name, ...] = Field(
        default=(), max_length=10_000, description="concepts that must survive, look-alikes above all"
    )
    evidence: tuple[Evidence, ...] = Field(default=(), max_length=100, description="digests and locators only")
    base: Name = Field(default="reference", description="name of the affected base model")
    affected: tuple[AffectedModel, ...] = Field(default=(), max_length=100, description="models known to be affected")
    scope: Text | None = Field(default=None, description="what the request is limited to, and its exceptions")

    @model_validator(mode="before")
    @classmethod
    def _format_by_its_fields(cls, document: Any) -> Any:
        if isinstance(document, dict) and "format" not in document and "received" in document:
            return {**document, "format": 1}
        return document

    @model_validator(mode="after")
    def _fields_fit_the_format(self) -> "TakedownRequest":
        if self.format == 1:
            newer = sorted(self.model_fields_set - _FIRST_FORMAT - {"format"})
            if newer or self.received is None:
                raise ValueError(f"expected `received` and no {newer} in format 1; write `format: 2` and `received_at`")
        elif self.received is not None:
            raise ValueError("expected `received_at` in format 2, found `received`; rename it and give a time and zone")
        elif not _JURISDICTION.fullmatch(self.jurisdiction):
            raise ValueError(f"jurisdiction: expected a code such as EU, US or US-CA, found {self.jurisdiction!r}")
        return self

    @model_validator(mode="after")
    def _targets_are_distinct_and_not_retained(self) -> "TakedownRequest":
        names = [subject.concept.casefold() for subject in self.subjects]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"expected each concept once, found {repeated} more than once; merge the entries")
        retained = {name.casefold() for name in self.retain}
        both = sorted({alias.casefold() for s in self.subjects for alias in (s.concept, *s.aliases)} & retained)
        if both:
            raise ValueError(f"expected targets and retained concepts to differ, found {both} as both; remove from one")
        return self

    @property
    def received_or(self) -> datetime | None:
        """When it came in, in UTC, as far as the record says: midnight of the day in format 1."""
        if self.received is not None:
            return datetime(self.received.year, self.received.month, self.received.day, tzinfo=UTC)
        return self.received_at.astimezone(UTC) if self.received_at else None

    def identity(self) -> dict[str, Any]:
        """Returns what makes this request this request: everything but when it came in (format 2), sorted."""
        if self.format == 1:
            record = self.model_dump(mode="json", include=set(_FIRST_FORMAT))
            record["requester"] = {name: record["requester"][name] for name in _FIRST_REQUESTER}
            record["subjects"] = [{name: each[name] for name in _FIRST_SUBJECT} for each in record["subjects"]]
        else:  # defaults are left out, so that fields added later change no identifier
            record = self.model_dump(mode="json", exclude={"received_at"}, exclude_defaults=True)
            record["format"] = self.format
        record["subjects"].sort(key=lambda subject: subject["concept"])
        for holder, name in [(s, n) for s in record["subjects"] for n in ("aliases", "languages")] + [
            (record, "statements")
        ]:
            if name in holder:
                holder[name] = sorted(holder[name])
        if "retain" in record:
            record["retain"] = sorted(set(record["retain"]))
        return record

    def canonical_bytes(self) -> bytes:
        """Returns `identity` as canonical JSON (RFC 8785)."""
        return rfc8785.dumps(self.identity())

    @property
    def request_id(self) -> str:
        """Opaque identifier, `req-` and 16 hexadecimal digits of a digest of the content."""
        return f"req-{hmac.new(b'scapre request', self.canonical_bytes(), hashlib.sha256).hexdigest()[:16]}"


def load_request(path: Path) -> TakedownRequest:
    """Reads a takedown request from a YAML or JSON file.

    Raises:
        BadRequestError: The file cannot be read, or does not hold a valid request; every fault is named with its place.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadRequestError(
            f"expected a readable YAML or JSON file, found {path}: {error}; check the path and its permissions"
        ) from error
    return read_request_file(content, name=str(path))


def read_request_file(content: bytes, *, name: str) -> TakedownRequest:
    """Returns the takedown request in a file's content; `name` says where from, and by its end whether it is JSON.

    Raises:
        BadRequestError: See `load_request`.
    """
    if len(content) > LARGEST_BYTES:
        raise BadRequestError(
            f"expected a request of at most {LARGEST_BYTES} bytes, found {len(content)} in {name}; "
            "evidence is given by digest and locator, not as files"
        )
    try:
        is_json = name.endswith(".json")
        document = _load_json(content) if is_json else read_content(content, source=name, error=PolicyError)
    except (PolicyError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise BadRequestError(f"expected a request in YAML or JSON, found {name}: {said}; correct the file") from error
    return parse_request(document, source=name)


def parse_request(document: Any, *, source: str) -> TakedownRequest:
    """Returns the request in a parsed document.

    Raises:
        BadRequestError: A field is missing, unknown or out of range.
    """
    if not isinstance(document, Mapping):
        raise BadRequestError(
            f"expected a mapping with fields such as `ground` and `subjects` in {source}, found "
            f"{type(document).__name__}; `scapre request template` prints a complete example"
        )
    try:
        return TakedownRequest.model_validate(document)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'request'}: {fault['msg']}"
            + (f" (found {fault['input']!r})" if fault["type"] == "literal_error" else "")
            for fault in error.errors()
        )
        raise BadRequestError(
            f"expected a valid takedown request, found in {source}: {' '.join(faults.split())}; "
            "`scapre request template` prints an example"
        ) from error


def _load_json(content: bytes) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"key {repeated[0]!r} stands twice")
        return dict(pairs)

    return json.loads(content.decode("utf-8"), object_pairs_hook=once)
