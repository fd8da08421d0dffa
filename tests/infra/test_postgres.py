"""Ledger, records and locks on PostgreSQL, against a server of its own when its programs are installed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from infra.chain import EntryKind
from infra.database import open_database, writing
from infra.errors import LedgerError, LockHeldError, TransientFailure
from infra.ledger import Ledger
from infra.locks import acquire_lock, hold_lock
from infra.personal import PersonalRecords

pytestmark = pytest.mark.postgres


@pytest.fixture
def engine(postgres_server: str) -> Iterator[Engine]:
    opened = open_database(postgres_server)
    yield opened
    with opened.begin() as connection:
        for table in ("ledger_entries", "ledger_receipts", "personal_records", "locks", "intents", "ledger_schema"):
            connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
    opened.dispose()


def test_rival_writers_lose_nothing(engine: Engine, postgres_server: str):
    def write(writer: int) -> None:
        ledger = Ledger(open_database(postgres_server), attempts=100)
        for number in range(10):
            ledger.append(EntryKind.JUDGED, {"writer": writer, "number": number}, idempotency_key=f"{writer}-{number}")
            ledger.append(EntryKind.REFUSED, {"shared": number}, idempotency_key=f"shared-{number}")
        ledger.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    ledger = Ledger(engine)
    assert ledger.verify() == []
    assert len(ledger.entries(kind=EntryKind.JUDGED)) == 40
    assert len(ledger.entries(kind=EntryKind.REFUSED)) == 10


@pytest.mark.parametrize(
    "statement", ["UPDATE ledger_entries SET body = '{}'", "DELETE FROM ledger_receipts", "TRUNCATE ledger_entries"]
)
def test_the_database_itself_refuses_to_change_entries(engine: Engine, statement: str):
    ledger = Ledger(engine)
    ledger.append(EntryKind.JUDGED, {"é": 1})
    with pytest.raises(LedgerError, match="append-only"), writing(engine) as connection:
        connection.execute(text(statement))
    assert ledger.verify() == []


def test_tampering_behind_the_triggers_is_found(engine: Engine):
    ledger = Ledger(engine)
    ledger.append(EntryKind.JUDGED, {})
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE ledger_entries DISABLE TRIGGER USER"))
        connection.execute(text("UPDATE ledger_entries SET kind = 'promoted'"))
    assert [fault.kind for fault in ledger.verify()] == ["altered"]


def test_the_lock_holds_and_personal_data_is_erased(engine: Engine):
    with hold_lock(engine, owner="run-1") as lock:
        with pytest.raises(LockHeldError, match="held by run-1"):
            acquire_lock(engine, owner="run-2")
        lock.ensure_held()
    records = PersonalRecords(engine)
    assert records.keep("r-1", {"name": "Ada"}) == records.keep("r-1", {"name": "Ada"})
    assert records.erase("r-1")


def test_a_server_that_is_not_there_is_transient(tmp_path: Path):
    with pytest.raises(TransientFailure):
        Ledger.open(f"postgresql+psycopg2://scapre@/postgres?host={tmp_path}")
