"""Intents: what is about to change in several places at once, noted in the ledger's database before the first change.

* At most one intent of a name; it stays until everything it announces is done or undone.
* An intent that is found by somebody who holds the lock was left by a process that died: the ledger says what holds.
* An intent is no record: the ledger is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Column, Engine, String, Table, Text, delete, insert, select

from infra.database import METADATA, migrate, reading, writing
from infra.digests import canonical_json

INTENTS = Table(
    "intents",
    METADATA,
    Column("name", String(255), primary_key=True),
    Column("body", Text, nullable=False),
)


def note_intent(engine: Engine, name: str, body: Mapping[str, Any]) -> None:
    """Notes what is about to change, in place of an older intent of the name."""
    migrate(engine)
    with writing(engine) as connection:
        connection.execute(delete(INTENTS).where(INTENTS.c.name == name))
        connection.execute(insert(INTENTS).values(name=name, body=canonical_json(dict(body)).decode()))


def find_intent(engine: Engine, name: str) -> dict[str, Any] | None:
    """Returns what was left half done, or None."""
    migrate(engine)
    with reading(engine) as connection:
        row = connection.execute(select(INTENTS.c.body).where(INTENTS.c.name == name)).one_or_none()
    return None if row is None else json.loads(row.body)


def clear_intent(engine: Engine, name: str) -> None:
    """Forgets an intent: everything it announced is done or undone."""
    with writing(engine) as connection:
        connection.execute(delete(INTENTS).where(INTENTS.c.name == name))
