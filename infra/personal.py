"""Personal data of requesters, beside the ledger and erasable.

* The chain holds only a commitment, the SHA-256 of a random salt and the contact: it proves, and tells nothing.
* Erasing removes contact and salt together; without the salt the commitment cannot be guessed back.
* The chain verifies before and after.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Column, Engine, String, Table, Text, delete, exc, insert, select

from infra.database import METADATA, migrate, open_database, reading, writing
from infra.digests import canonical_json, sha256_bytes
from infra.errors import LedgerError

RECORDS = Table(
    "personal_records",
    METADATA,
    Column("request_id", String(128), primary_key=True),
    Column("salt", String(64), nullable=False),
    Column("contact", Text, nullable=False),
)


class PersonalRecords:
    """Who asked, by request."""

    def __init__(self, engine: Engine) -> None:
        """Brings the tables to the schema of this version."""
        self.engine = engine
        migrate(engine)

    @classmethod
    def open(cls, url: str) -> PersonalRecords:
        """Opens the records at a database URL; the ledger's own is the usual one."""
        return cls(open_database(url))

    def keep(self, request_id: str, contact: Mapping[str, Any]) -> str:
        """Stores a contact and returns its commitment, which belongs in the ledger entry of the request.

        Keeping the same contact again returns the same commitment.

        Raises:
            LedgerError: the request already has another contact.
        """
        text, salt = canonical_json(dict(contact)).decode(), secrets.token_hex(32)
        try:
            with writing(self.engine) as connection:
                connection.execute(insert(RECORDS).values(request_id=request_id, salt=salt, contact=text))
        except exc.IntegrityError:
            salt, kept = self._row(request_id) or (salt, "")
            if kept != text:
                raise LedgerError(
                    f"expected no contact for request {request_id} yet, found another one; erase it first"
                ) from None
        return _commitment(salt, text)

    def find(self, request_id: str) -> dict[str, Any] | None:
        """Returns a request's contact, or None when there is none or it was erased."""
        row = self._row(request_id)
        return None if row is None else json.loads(row[1])

    def matches(self, request_id: str, commitment: str) -> bool:
        """Says whether the contact kept now is the one that a commitment was made for; False once erased."""
        row = self._row(request_id)
        return row is not None and secrets.compare_digest(_commitment(*row), commitment)

    def erase(self, request_id: str) -> bool:
        """Removes a contact and its salt for good; says whether there was one."""
        with writing(self.engine) as connection:
            return connection.execute(delete(RECORDS).where(RECORDS.c.request_id == request_id)).rowcount == 1

    def _row(self, request_id: str) -> tuple[str, str] | None:
        query = select(RECORDS.c.salt, RECORDS.c.contact).where(RECORDS.c.request_id == request_id)
        with reading(self.engine) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else (row.salt, row.contact)


def _commitment(salt: str, contact: str) -> str:
    return sha256_bytes(bytes.fromhex(salt) + contact.encode())
