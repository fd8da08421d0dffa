"""The chain: nothing is lost, nothing is recorded twice, and no tampering goes unseen."""

import contextlib
import json
import multiprocessing
import sqlite3
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from infra.chain import GENESIS, EntryKind, FaultKind, verify_export
from infra.database import open_database
from infra.errors import LedgerError, SettingsError, TransientFailure
from infra.ledger import Ledger

LENGTH = 5
TABLES = ("ledger_entries", "ledger_receipts")


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return Ledger(engine)


def fill(ledger: Ledger, count: int = LENGTH) -> None:
    kinds = list(EntryKind)
    for number in range(count):
        ledger.append(
            kinds[number % len(kinds)], {"request": f"r-{number}", "é": [number, None]}, idempotency_key=f"k{number}"
        )


def raw(path: Path) -> sqlite3.Connection:
    """A connection of somebody who has the file, with the triggers dropped."""
    connection = sqlite3.connect(path, isolation_level=None)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    return connection


def kinds_found(ledger: Ledger) -> set[FaultKind]:
    return {fault.kind for fault in ledger.verify()}


def test_an_entry_names_its_parent_and_reads_back(ledger: Ledger):
    first = ledger.append(EntryKind.REQUEST_ADDED, {"b": 1, "a": "é"})
    second = ledger.append(EntryKind.JUDGED, {})
    assert (first.sequence, first.parent_hash) == (1, GENESIS)
    assert (second.sequence, second.parent_hash) == (2, first.entry_hash)
    assert first.body_text == '{"a":"é","b":1}'
    assert ledger.entries() == [first, second]
    assert ledger.entries(after=1) == ledger.entries(kind=EntryKind.JUDGED) == [second]
    assert ledger.head() == second
    assert ledger.verify() == []
    assert ledger.verify(known_head=first.entry_hash) == []


def test_an_empty_ledger_is_whole(ledger: Ledger):
    assert ledger.verify() == []
    assert ledger.head() is None


def test_the_same_effect_is_recorded_once(ledger: Ledger):
    first = ledger.append(EntryKind.PROMOTED, {"version": "3"}, idempotency_key="promotion-3")
    assert ledger.append(EntryKind.PROMOTED, {"version": "3"}, idempotency_key="promotion-3") == first
    assert ledger.find("promotion-3") == first
    assert len(ledger.entries()) == 1
    for kind, body in ((EntryKind.PROMOTED, {"version": "4"}), (EntryKind.ROLLED_BACK, {"version": "3"})):
        with pytest.raises(LedgerError, match="another content; give the new effect a key of its own"):
            ledger.append(kind, body, idempotency_key="promotion-3")


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": 2**60}, {"x": object()}])
def test_a_body_that_json_cannot_carry_is_refused(ledger: Ledger, body: dict):
    with pytest.raises(Exception, match="JSON can carry exactly"):
        ledger.append(EntryKind.JUDGED, body)
    assert ledger.entries() == []


def test_an_unknown_kind_is_refused(ledger: Ledger):
    with pytest.raises(LedgerError, match="'judgded'"):
        ledger.append("judgded", {})


def test_a_ledger_in_memory_is_refused():
    with pytest.raises(SettingsError, match="outlives the process"):
        Ledger.open("sqlite:///:memory:")


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "statement", ["UPDATE {0} SET entry_hash = 'x'", "DELETE FROM {0}", "REPLACE INTO {0} SELECT * FROM {0}"]
)
def test_the_database_itself_refuses_to_change_entries(ledger: Ledger, tmp_path: Path, table: str, statement: str):
    fill(ledger)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement.format(table))
    connection.close()
    assert ledger.verify() == []


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["UPDATE ledger_entries SET body = '{}' WHERE sequence = 3"], {FaultKind.ALTERED}),
        (["UPDATE ledger_entries SET entry_hash = 'x' WHERE sequence = 5"], {FaultKind.WRONG_HASH}),
        (["DELETE FROM ledger_entries WHERE sequence = 3"], {FaultKind.MISSING, FaultKind.BROKEN_LINK}),
        (["DELETE FROM ledger_entries WHERE sequence = 5"], {FaultKind.MISSING}),
        (["DELETE FROM ledger_entries"], {FaultKind.MISSING}),
        (["DELETE FROM ledger_receipts WHERE sequence = 5"], {FaultKind.UNRECEIPTED}),
        (
            [
                f"UPDATE ledger_entries SET sequence = {new} WHERE sequence = {old}"
                for old, new in ((2, 99), (3, 2), (99, 3))
            ],
            {FaultKind.REORDERED, FaultKind.BROKEN_LINK},
        ),
    ],
)
def test_a_fault_is_named(ledger: Ledger, tmp_path: Path, statements: list[str], expected: set[FaultKind]):
    fill(ledger)
    connection = raw(tmp_path / "ledger.db")
    for statement in statements:
        connection.execute(statement)
    connection.close()
    assert kinds_found(ledger) == expected


def test_an_entry_rewritten_with_a_fitting_hash_is_found(ledger: Ledger, tmp_path: Path):
    fill(ledger)
    last = ledger.entries()[-1]
    forged = type(last)(**{**last.__dict__, "body_text": '{"forged":true}'})
    connection = raw(tmp_path / "ledger.db")
    connection.execute(
        "UPDATE ledger_entries SET body = ?, entry_hash = ? WHERE sequence = ?",
        (forged.body_text, forged.computed_hash(), last.sequence),
    )
    assert kinds_found(ledger) == {FaultKind.ALTERED}
    connection.execute("UPDATE ledger_receipts SET entry_hash = ? WHERE sequence = 5", (forged.computed_hash(),))
    connection.close()
    assert ledger.verify() == []  # whoever rewrites all of it is caught by a head noted elsewhere
    assert {fault.kind for fault in ledger.verify(known_head=last.entry_hash)} == {FaultKind.MISSING}


@pytest.fixture(scope="module")
def whole_ledger(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    ledger = Ledger.open(f"sqlite:///{path}")
    fill(ledger)
    ledger.close()
    return path.read_bytes()


COLUMNS = {
    "ledger_entries": ("sequence", "format", "kind", "at", "body", "parent_hash", "entry_hash", "idempotency_key"),
    "ledger_receipts": ("sequence", "entry_hash"),
}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_single_tampering_is_found(whole_ledger: bytes, data: st.DataObject):
    table = data.draw(st.sampled_from(TABLES))
    place = data.draw(st.integers(1, LENGTH))
    column = data.draw(st.sampled_from((*COLUMNS[table], "delete")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ledger.db")
        path.write_bytes(whole_ledger)
        connection = raw(path)
        before = connection.execute(f"SELECT * FROM {table}").fetchall()
        if column == "delete":
            connection.execute(f"DELETE FROM {table} WHERE sequence = ?", (place,))
        else:
            query = f"SELECT {column} FROM {table} WHERE sequence = ?"
            (old,) = connection.execute(query, (place,)).fetchone()
            new = data.draw(tampered(old), label=f"{column} of {table} {place}")
            with contextlib.suppress(sqlite3.IntegrityError):  # a constraint that refuses is as good
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE sequence = ?", (new, place))
        after = connection.execute(f"SELECT * FROM {table}").fetchall()
        connection.close()
        ledger = Ledger.open(f"sqlite:///{path}")
        faults = ledger.verify()
        ledger.close()
    assert bool(faults) == (before != after)


def tampered(old: object) -> st.SearchStrategy:
    if isinstance(old, int):
        return st.integers(-(2**62), 2**62).filter(lambda new: new != old)
    text = str(old)
    flip = st.integers(0, len(text) - 1).map(lambda at: text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
    other = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=80)
    return st.one_of(flip, other, st.just(text + " "), st.just(text.upper()), st.binary(max_size=8)).filter(
        lambda new: new != old
    )


def append_many(url: str, writer: int, count: int) -> int:
    ledger = Ledger.open(url)
    for number in range(count):
        ledger.append(EntryKind.JUDGED, {"writer": writer, "number": number}, idempotency_key=f"{writer}-{number}")
        ledger.append(EntryKind.REFUSED, {"shared": number}, idempotency_key=f"shared-{number}")
    ledger.close()
    return writer


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_rival_writers_lose_nothing_and_never_fork_the_chain(tmp_path: Path, kind: str):
    url, count = f"sqlite:///{tmp_path / 'ledger.db'}", 8
    pool = (
        ThreadPoolExecutor(4)
        if kind == "threads"
        else ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn"))
    )
    with pool:
        assert sorted(pool.map(append_many, [url] * 4, range(4), [count] * 4)) == [0, 1, 2, 3]
    ledger = Ledger.open(url)
    assert ledger.verify() == []
    bodies = [(entry.body.get("writer"), entry.body.get("number")) for entry in ledger.entries(kind=EntryKind.JUDGED)]
    assert sorted(bodies) == [(writer, number) for writer in range(4) for number in range(count)]
    assert len(ledger.entries(kind=EntryKind.REFUSED)) == count
    ledger.close()


def test_a_writer_that_finds_the_database_busy_says_so_after_a_bounded_time(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("infra.database.BUSY_TIMEOUT_SECONDS", 0.05)
    ledger = Ledger(open_database(f"sqlite:///{tmp_path / 'ledger.db'}"), attempts=2)
    blocker = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(TransientFailure, match="locked"):
        ledger.append(EntryKind.JUDGED, {})
    blocker.execute("ROLLBACK")
    blocker.close()
    assert ledger.append(EntryKind.JUDGED, {}).sequence == 1
    ledger.close()


def test_readers_see_one_moment_while_others_write(ledger: Ledger):
    stop = threading.Event()

    def write() -> None:
        for _ in range(30):
            ledger.append(EntryKind.JUDGED, {})
        stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not stop.is_set():
        assert ledger.verify() == []
    thread.join()


def test_an_export_verifies_offline_and_shows_what_was_changed(ledger: Ledger, tmp_path: Path):
    fill(ledger)
    head = ledger.entries()[-1].entry_hash
    path = ledger.export(tmp_path / "out" / "ledger.jsonl")
    assert verify_export(path, known_head=head) == []
    lines = path.read_text().splitlines()
    assert json.loads(lines[0])["body"]["request"] == "r-0"
    cases = [
        ([*lines[:1], lines[1].replace("r-1", "r-9"), *lines[2:]], FaultKind.ALTERED),
        ([lines[0], *lines[2:]], FaultKind.MISSING),
        (lines[:-1], FaultKind.MISSING),
        ([lines[1], lines[0], *lines[2:]], FaultKind.REORDERED),
    ]
    for changed, expected in cases:
        path.write_text("\n".join(changed))
        assert expected in {fault.kind for fault in verify_export(path, known_head=head)}
    path.write_text("not an entry")
    assert [fault.kind for fault in verify_export(path)] == [FaultKind.ALTERED, FaultKind.ALTERED]  # and no line end
