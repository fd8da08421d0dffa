"""Personal data can be erased, and the chain verifies before and after."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from infra.chain import EntryKind
from infra.errors import LedgerError
from infra.ledger import Ledger
from infra.personal import PersonalRecords

CONTACT = {"name": "Ada Example", "email": "ada@example.org"}


def test_erasing_a_contact_leaves_a_chain_that_verifies(engine: Engine, tmp_path: Path):
    ledger, records = Ledger(engine), PersonalRecords(engine)
    commitment = records.keep("r-1", CONTACT)
    ledger.append(EntryKind.REQUEST_ADDED, {"request": "r-1", "requester": commitment})
    assert records.find("r-1") == CONTACT
    assert records.matches("r-1", commitment)
    assert records.erase("r-1")
    ledger.append(EntryKind.PERSONAL_DATA_ERASED, {"request": "r-1"})
    assert records.find("r-1") is None
    assert not records.matches("r-1", commitment)
    assert not records.erase("r-1")
    assert ledger.verify() == []
    engine.dispose()
    assert b"ada@example.org" not in (tmp_path / "ledger.db").read_bytes()


def test_keeping_the_same_contact_twice_is_keeping_it_once(engine: Engine):
    records = PersonalRecords(engine)
    assert records.keep("r-1", CONTACT) == records.keep("r-1", dict(reversed(CONTACT.items())))
    with pytest.raises(LedgerError, match="found another one; erase it first"):
        records.keep("r-1", {"name": "Somebody Else"})


def test_equal_contacts_have_different_commitments(engine: Engine):
    records = PersonalRecords(engine)
    assert records.keep("r-1", CONTACT) != records.keep("r-2", CONTACT)
