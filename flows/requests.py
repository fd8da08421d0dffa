"""Takedown requests: the typed record, which is also the form that Prefect shows.

Guarantees:
    1. A request's identifier is derived from its content: the same request twice is one request.
    2. The identifier says nothing about who asked or what for.
    3. Nothing malformed gets in: unknown fields, kinds and empty names are refused with the place named.
"""

import hashlib
import hmac
import json
from datetime import date
from pathlib import Path
from typing import Literal

import rfc8785
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flows.errors import BadRequestError

Kind = Literal["object", "style", "identity", "unsafe"]
Ground = Literal["copyright", "likeness", "privacy", "safety", "contract", "internal"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Requester(_Record):
    """Who asks; kept beside the ledger, never in it."""

    name: str = Field(min_length=1, description="person or organisation that asks")
    role: str = Field(min_length=1, description="for example: artist, agent, rights holder, safety team")
    contact: str = Field(min_length=1, description="where an answer reaches them")


class Subject(_Record):
    """One concept that must go."""

    concept: str = Field(min_length=1, description="everyday name of the concept")
    kind: Kind = Field(description="object, style, identity or unsafe")
    aliases: tuple[str, ...] = Field(default=(), description="other names, other languages, misspellings")
    anchor: str | None = Field(default=None, description="what to draw instead; default: something neutral")


class TakedownRequest(_Record):
    """A request that a model forget one or more concepts."""

    received: date = Field(description="the day it came in, ISO 8601; deadlines run from it")
    ground: Ground = Field(description="why the concepts must go")
    jurisdiction: str = Field(min_length=2, description="where the ground applies, for example EU, US, US-CA")
    requester: Requester
    subjects: tuple[Subject, ...] = Field(min_length=1, description="what must go")
    retain: tuple[str, ...] = Field(default=(), description="concepts that must survive, look-alikes above all")
    base: str = Field(default="reference", min_length=1, description="name of the affected base model")

    @field_validator("retain")
    @classmethod
    def _names_are_not_empty(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not all(names):
            raise ValueError("expected names, found an empty one; remove it")
        return names

    @model_validator(mode="after")
    def _targets_are_distinct_and_not_retained(self) -> "TakedownRequest":
        names = [subject.concept.casefold() for subject in self.subjects]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"expected each concept once, found {repeated} more than once; merge the entries")
        both = sorted({alias.casefold() for s in self.subjects for alias in (s.concept, *s.aliases)} & self._retained())
        if both:
            raise ValueError(f"expected targets and retained concepts to differ, found {both} as both; remove from one")
        return self

    def _retained(self) -> set[str]:
        return {name.casefold() for name in self.retain}

    def canonical_bytes(self) -> bytes:
        """Returns the record as canonical JSON (RFC 8785); subjects and retained names are sorted first."""
        record = self.model_dump(mode="json")
        record["subjects"].sort(key=lambda subject: subject["concept"])
        for subject in record["subjects"]:
            subject["aliases"].sort()
        record["retain"] = sorted(set(record["retain"]))
        return rfc8785.dumps(record)

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
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequestError(
            f"expected a readable YAML or JSON file, found {path}: {error}; check the path and its permissions"
        ) from error
    try:
        document = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise BadRequestError(f"expected YAML or JSON in {path}, found a syntax error: {error}; correct it") from error
    if not isinstance(document, dict):
        raise BadRequestError(
            f"expected a mapping with fields such as `ground` and `subjects` in {path}, found "
            f"{type(document).__name__}; `scapre request template` prints a complete example"
        )
    return parse_request(document, source=str(path))


def parse_request(document: dict[str, object], *, source: str) -> TakedownRequest:
    """Returns the request in a parsed document.

    Raises:
        BadRequestError: A field is missing, unknown or out of range.
    """
    try:
        return TakedownRequest.model_validate(document)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'request'}: {fault['msg']}"
            + (f" (found {fault['input']!r})" if fault["type"] == "literal_error" else "")
            for fault in error.errors()
        )
        raise BadRequestError(
            f"expected a valid takedown request, found in {source}: {faults}; "
            "`scapre request template` prints an example"
        ) from error
