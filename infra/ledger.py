"""The ledger: what was asked, built, judged, approved and promoted, in order, for good.

* Append-only: this module neither updates nor deletes, and triggers refuse both to everyone else.
* Each entry names its parent's hash, and no two entries share a parent: rival writers cannot fork the chain.
* An effect recorded twice under one idempotency key is one entry.
* Each append also leaves a receipt in a second table, so that removing the newest entries is found as well.
* No personal data: `infra.personal` keeps that beside the chain, where it can be erased.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tenacity
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    Row,
    String,
    Table,
    Text,
    exc,
    insert,
    select,
)

from infra.chain import FORMAT, GENESIS, Entry, EntryKind, Fault, find_faults, hash_content, write_export
from infra.database import METADATA, migrate, open_database, reading, writing
from infra.digests import canonical_json
from infra.errors import LedgerError, TransientFailure

ENTRIES = Table(
    "ledger_entries",
    METADATA,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("format", Integer, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("at", String(32), nullable=False),
    Column("body", Text, nullable=False),
    Column("parent_hash", String(64), nullable=False, unique=True),
    Column("entry_hash", String(64), nullable=False, unique=True),
    Column("idempotency_key", String(255), nullable=True, unique=True),
)
RECEIPTS = Table(
    "ledger_receipts",
    METADATA,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("entry_hash", String(64), nullable=False, unique=True),
)
Index("ix_ledger_entries_kind", ENTRIES.c.kind, ENTRIES.c.sequence)


class Ledger:
    """Append to, read and check the chain."""

    def __init__(self, engine: Engine, *, attempts: int = 25) -> None:
        """Brings the tables to the schema of this version.

        Args:
            engine: From `infra.database.open_database`.
            attempts: How often an append is tried when rival writers come first.
        """
        self.engine = engine
        self._attempts = attempts
        migrate(engine)

    @classmethod
    def open(cls, url: str) -> Ledger:
        """Opens the ledger at a database URL."""
        return cls(open_database(url))

    def close(self) -> None:
        """Gives the database connections back."""
        self.engine.dispose()

    def append(self, kind: EntryKind, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Entry:
        """Records an effect at the head of the chain, or returns the entry that already records it.

        Args:
            kind: What happened.
            body: What there is to know about it, JSON-able, without personal data.
            idempotency_key: The same key with the same kind and body is the same effect.

        Raises:
            LedgerError: unknown kind, or a key that already stands for another effect.
            TransientFailure: rivals came first every time, or the database was busy.
        """
        if kind not in list(EntryKind):
            raise LedgerError(f"expected one of {', '.join(EntryKind)}, found kind {str(kind)!r}; use an EntryKind")
        body_text = canonical_json(dict(body)).decode()

        def once() -> Entry:
            try:
                with writing(self.engine) as connection:
                    recorded = _find(connection, idempotency_key)
                    return recorded or _append(connection, str(kind), body_text, idempotency_key)
            except exc.IntegrityError as error:  # a rival took this parent or key first: look at the new head
                raise TransientFailure(f"expected to append first, found a rival's entry ({error.orig})") from error

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientFailure),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=tenacity.wait_random_exponential(multiplier=0.01, max=1.0),
            reraise=True,
        )
        entry = retrying(once)
        if (entry.kind, entry.body_text) != (str(kind), body_text):
            raise LedgerError(
                f"expected key {idempotency_key!r} to stand for this {kind} entry, found entry {entry.sequence} "
                f"({entry.kind}) with another content; give the new effect a key of its own"
            )
        return entry

    def entries(self, *, kind: EntryKind | None = None, after: int = 0) -> list[Entry]:
        """Returns entries in order, those after a sequence number, of one kind or all."""
        query = select(ENTRIES).where(ENTRIES.c.sequence > after).order_by(ENTRIES.c.sequence)
        if kind is not None:
            query = query.where(ENTRIES.c.kind == str(kind))
        with reading(self.engine) as connection:
            return [_entry(row) for row in connection.execute(query)]

    def find(self, idempotency_key: str) -> Entry | None:
        """Returns the entry recorded under a key."""
        with reading(self.engine) as connection:
            return _find(connection, idempotency_key)

    def head(self) -> Entry | None:
        """Returns the newest entry; note its hash elsewhere to make later rewriting evident."""
        with reading(self.engine) as connection:
            return _head(connection)

    def verify(self, *, known_head: str | None = None) -> list[Fault]:
        """Returns everything wrong with the chain; an empty list means that nothing is.

        Args:
            known_head: A hash noted outside this database, which the chain must contain.
        """
        with reading(self.engine) as connection:
            entries = [_entry(row) for row in connection.execute(select(ENTRIES).order_by(ENTRIES.c.sequence))]
            receipts = {row.sequence: row.entry_hash for row in connection.execute(select(RECEIPTS))}
        return find_faults(entries, receipts=receipts, known_head=known_head)

    def export(self, path: Path) -> Path:
        """Writes all entries as JSON lines, which `infra.chain.verify_export` checks offline."""
        return write_export(self.entries(), path)


def _append(connection: Connection, kind: str, body_text: str, idempotency_key: str | None) -> Entry:
    head = _head(connection)
    draft = Entry(
        sequence=head.sequence + 1 if head else 1,
        kind=kind,
        at=datetime.now(UTC).isoformat(timespec="microseconds"),
        body_text=body_text,
        parent_hash=head.entry_hash if head else GENESIS,
        entry_hash="",
        idempotency_key=idempotency_key,
    )
    entry_hash = hash_content(draft.content())
    row = {
        "sequence": draft.sequence,
        "format": FORMAT,
        "kind": kind,
        "at": draft.at,
        "body": body_text,
        "parent_hash": draft.parent_hash,
        "entry_hash": entry_hash,
        "idempotency_key": idempotency_key,
    }
    inserted = connection.execute(insert(ENTRIES).values(row).returning(*ENTRIES.c)).one()
    connection.execute(insert(RECEIPTS).values(sequence=draft.sequence, entry_hash=entry_hash))
    return _entry(inserted)


def _find(connection: Connection, idempotency_key: str | None) -> Entry | None:
    if idempotency_key is None:
        return None
    row = connection.execute(select(ENTRIES).where(ENTRIES.c.idempotency_key == idempotency_key)).one_or_none()
    return None if row is None else _entry(row)


def _head(connection: Connection) -> Entry | None:
    row = connection.execute(select(ENTRIES).order_by(ENTRIES.c.sequence.desc()).limit(1)).one_or_none()
    return None if row is None else _entry(row)


def _entry(row: Row[Any]) -> Entry:
    return Entry(
        sequence=row.sequence,
        kind=row.kind,
        at=row.at,
        body_text=row.body,
        parent_hash=row.parent_hash,
        entry_hash=row.entry_hash,
        idempotency_key=row.idempotency_key,
        format=row.format,
    )
