"""The hash chain of the ledger, without a database: enough to check an exported ledger offline.

* An entry's hash covers its sequence, kind, time, body, idempotency key and its parent's hash, in RFC 8785 form.
* The first entry's parent is `GENESIS`; every other entry's parent is the entry before it.
* `find_faults` names what is wrong and where; an empty list means that nothing is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from infra.atomic import written_beside
from infra.digests import canonical_json, sha256_bytes
from infra.errors import LedgerError, PermanentFailure

GENESIS = "0" * 64
FORMAT = 1


class EntryKind(StrEnum):
    """What happened. Kinds are added, never renamed: old ledgers stay readable."""

    REQUEST_ADDED = "request_added"
    REQUEST_TRIAGED = "request_triaged"
    REQUEST_VALIDATED = "request_validated"
    REQUEST_REJECTED = "request_rejected"
    REQUEST_WITHDRAWN = "request_withdrawn"
    REQUEST_COUNTER_NOTICED = "request_counter_noticed"
    REQUEST_UPHELD = "request_upheld"
    REQUEST_REINSTATED = "request_reinstated"
    REQUEST_PAUSED = "request_paused"
    REQUEST_RESUMED = "request_resumed"
    REQUEST_EXTENDED = "request_extended"
    REQUEST_CLOSED = "request_closed"
    PERSONAL_DATA_ERASED = "personal_data_erased"
    CANDIDATE_BUILT = "candidate_built"
    JUDGED = "judged"
    APPROVED = "approved"
    DECLINED = "declined"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
    REVERIFIED = "reverified"
    RELEASE_JUDGED = "release_judged"
    INCIDENT_OPENED = "incident_opened"
    INCIDENT_CLOSED = "incident_closed"
    DEADLINE_REPORTED = "deadline_reported"


class FaultKind(StrEnum):
    """What can be wrong with a chain."""

    ALTERED = "altered"
    """The content is not what was recorded."""
    WRONG_HASH = "wrong_hash"
    """The content is as recorded, its stored hash is not."""
    MISSING = "missing"
    """Entries that were recorded are gone."""
    REORDERED = "reordered"
    """An entry stands in another's place."""
    BROKEN_LINK = "broken_link"
    """An entry does not name the entry before it as its parent."""
    UNRECEIPTED = "unreceipted"
    """An entry that the ledger never recorded as appended."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a chain."""

    kind: FaultKind
    sequence: int
    """Where, counted from 1."""
    message: str

    def __str__(self) -> str:
        return f"entry {self.sequence}: {self.kind}: {self.message}"


@dataclass(frozen=True)
class Entry:
    """One recorded effect."""

    sequence: int
    """Position in the chain, from 1 without gaps."""
    kind: str
    """An `EntryKind`."""
    at: str
    """When, ISO 8601 in UTC with microseconds."""
    body_text: str
    """Canonical JSON of the body, as stored."""
    parent_hash: str
    """Hash of the entry before, `GENESIS` for the first."""
    entry_hash: str
    """Hash of this entry, as stored."""
    idempotency_key: str | None = None
    """What makes this effect the same effect when it is recorded again."""
    format: int = FORMAT
    """How the hash is taken."""

    @property
    def body(self) -> dict[str, Any]:
        """The body as a mapping; a new one each time."""
        return json.loads(self.body_text)

    def content(self) -> dict[str, Any]:
        """Returns all that the hash covers."""
        return {
            "format": self.format,
            "sequence": self.sequence,
            "kind": self.kind,
            "at": self.at,
            "body": self.body,
            "parent_hash": self.parent_hash,
            "idempotency_key": self.idempotency_key,
        }

    def computed_hash(self) -> str | None:
        """Returns the hash of the content as it is now, or None when it is not content this module writes."""
        try:
            if self.format != FORMAT or canonical_json(self.body) != self.body_text.encode():
                return None
            return hash_content(self.content())
        except (ValueError, TypeError, AttributeError, RecursionError, PermanentFailure):
            return None

    def to_line(self) -> str:
        """Returns the entry as one line of canonical JSON, hash included."""
        return canonical_json({**self.content(), "entry_hash": self.entry_hash}).decode()

    @classmethod
    def from_line(cls, line: str) -> Entry:
        """Reads an exported line.

        Raises:
            LedgerError: the line is not an exported entry, byte for byte as `to_line` writes it.
        """
        try:
            fields = json.loads(line)
            body_text = canonical_json(fields.pop("body")).decode()
            entry = cls(body_text=body_text, **fields)
            if entry.to_line() == line and type(entry.sequence) is int:
                return entry
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, PermanentFailure) as error:
            raise LedgerError(f"expected an exported ledger entry, found {_start(line)}; export it again") from error
        raise LedgerError(f"expected a ledger entry in canonical form, found {_start(line)}; export it again")


def hash_content(content: Mapping[str, Any]) -> str:
    """Returns an entry's hash from everything but the hash."""
    return sha256_bytes(canonical_json(dict(content)))


def find_faults(
    entries: Sequence[Entry], *, receipts: Mapping[int, str] | None = None, known_head: str | None = None
) -> list[Fault]:
    """Returns everything wrong with a chain, in order.

    Args:
        entries: In the order in which they are stored.
        receipts: Hash by sequence, as noted beside the entries when they were appended. Without them a chain that was
            cut at its end still looks whole.
        known_head: A head noted outside the ledger, which the chain must contain.
    """
    faults = [fault for entry in entries for fault in _content_faults(entry, receipts)]
    faults += _order_faults(entries)
    present = {entry.sequence for entry in entries}
    for sequence in sorted(set(receipts or {}) - present):
        faults.append(Fault(FaultKind.MISSING, sequence, "expected an entry, found only its receipt"))
    if known_head is not None and known_head not in {GENESIS, *(entry.entry_hash for entry in entries)}:
        message = f"expected the head {known_head} noted elsewhere, found a chain without it: it was cut or rewritten"
        faults.append(Fault(FaultKind.MISSING, len(entries) + 1, message))
    return sorted(faults, key=lambda fault: fault.sequence)


def write_export(entries: Iterable[Entry], path: Path) -> Path:
    """Writes entries as JSON lines."""
    with written_beside(path) as handle:
        handle.writelines(f"{entry.to_line()}\n".encode() for entry in entries)
    return path


def verify_export(path: Path, *, known_head: str | None = None) -> list[Fault]:
    """Returns everything wrong with an exported ledger; needs neither database nor network.

    Entries cut off at the end leave a whole chain: only `known_head`, noted elsewhere, shows that.

    Raises:
        LedgerError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"expected an exported ledger, found {path}: {error}; check the path") from error
    entries: list[Entry] = []
    faults: list[Fault] = []
    *lines, rest = content.split(b"\n")  # not splitlines, which splits at U+2028 within a text as well
    for number, line in enumerate([*lines, rest] if rest else lines, start=1):
        try:
            entries.append(Entry.from_line(line.decode("utf-8", "surrogateescape")))
        except LedgerError as error:
            faults.append(Fault(FaultKind.ALTERED, number, f"line {number}: {error}"))
    if rest:
        faults.append(Fault(FaultKind.ALTERED, len(lines) + 1, "expected a line end after the last entry, found none"))
    return sorted([*faults, *find_faults(entries, known_head=known_head)], key=lambda fault: fault.sequence)


def _start(line: str) -> str:
    return ascii(line[:60])


def _content_faults(entry: Entry, receipts: Mapping[int, str] | None) -> list[Fault]:
    computed = entry.computed_hash()
    receipt = entry.entry_hash if receipts is None else receipts.get(entry.sequence)
    if computed == entry.entry_hash == receipt:
        return []
    places = [place for place, noted in (receipts or {}).items() if noted == entry.entry_hash]
    if places and places[0] != entry.sequence:
        return [Fault(FaultKind.REORDERED, entry.sequence, f"expected here, found the entry of place {places[0]}")]
    if computed is not None and computed == receipt:
        return [Fault(FaultKind.WRONG_HASH, entry.sequence, f"expected hash {computed}, found {entry.entry_hash!a}")]
    if receipt is None and computed == entry.entry_hash:
        return [Fault(FaultKind.UNRECEIPTED, entry.sequence, "expected a receipt, found none")]
    expected = entry.entry_hash if receipt is None else receipt
    return [Fault(FaultKind.ALTERED, entry.sequence, f"expected content with hash {expected!a}, found {computed}")]


def _order_faults(entries: Sequence[Entry]) -> list[Fault]:
    faults: list[Fault] = []
    place, parent = 1, GENESIS
    for entry in entries:
        if entry.sequence > place:
            message = f"expected entries {place} to {entry.sequence - 1}, found none"
            faults.append(Fault(FaultKind.MISSING, place, message))
        elif entry.sequence < place:
            faults.append(Fault(FaultKind.REORDERED, entry.sequence, f"expected entry {place} at this place"))
        if entry.parent_hash != parent:
            message = f"expected parent {parent!a}, found {entry.parent_hash!a}"
            faults.append(Fault(FaultKind.BROKEN_LINK, entry.sequence, message))
        place, parent = entry.sequence + 1, entry.entry_hash
    return faults
