"""Any single byte changed, in the ledger's database, in an exported ledger or in a stored model, is found and named."""

import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.chain import EntryKind, verify_export
from infra.database import open_database
from infra.errors import DigestMismatchError, InfraError
from infra.ledger import Ledger
from infra.storage import LocalStore

ENTRIES = 4
TEXTS = {
    "ledger_entries": ("kind", "at", "body", "parent_hash", "entry_hash", "idempotency_key"),
    "ledger_receipts": ("entry_hash",),
}
FILES = {"model_index.json": b'{"_class_name": "X"}', "unet/weights.safetensors": bytes(range(256)) * 3, "empty": b""}
tampering = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)


def changed(content: bytes, data: st.DataObject) -> bytes:
    place = data.draw(st.integers(0, len(content) - 1), label="place")
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]), label="byte")
    return content[:place] + bytes([byte]) + content[place + 1 :]


def filled(folder: Path) -> Ledger:
    ledger = Ledger(open_database(f"sqlite:///{folder / 'ledger.db'}"))
    for number in range(ENTRIES):
        body = {"request_id": f"req-{number}", "é\u2028": [number, None, 0.5]}
        ledger.append(EntryKind.JUDGED, body, idempotency_key=f"key/{number}")
    return ledger


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    """A ledger whose guards somebody with the file has taken away."""
    folder = tmp_path_factory.mktemp("ledger")
    ledger = filled(folder)
    with sqlite3.connect(folder / "ledger.db") as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
    yield ledger, folder / "ledger.db"
    ledger.close()


@tampering
@given(st.data())
def test_a_byte_of_any_text_in_the_database_is_named_by_its_entry(ledger, data):
    whole, path = ledger
    table = data.draw(st.sampled_from(sorted(TEXTS)))
    column = data.draw(st.sampled_from(TEXTS[table]))
    sequence = data.draw(st.integers(1, ENTRIES))
    where = f"FROM {table} WHERE sequence = {sequence}"
    set_raw = f"UPDATE {table} SET {column} = CAST(? AS TEXT) WHERE sequence = {sequence}"
    connection = sqlite3.connect(path)
    connection.text_factory = bytes
    ((content,),) = connection.execute(f"SELECT {column} {where}").fetchall()
    try:
        connection.execute(set_raw, (changed(content, data),))
        connection.commit()
        faults = whole.verify()
    finally:
        connection.execute(set_raw, (content,))
        connection.commit()
        connection.close()
    assert sequence in {fault.sequence for fault in faults}
    assert all(str(fault).isprintable() for fault in faults)
    assert whole.verify() == []


@tampering
@given(st.sampled_from(sorted(TEXTS)), st.integers(1, ENTRIES), st.integers(-5, 2**40))
def test_another_number_in_the_database_is_named(ledger, table, sequence, number):
    whole, path = ledger
    for column in ("sequence", "format") if table == "ledger_entries" else ("sequence",):
        with sqlite3.connect(path) as connection:
            (before,) = connection.execute(f"SELECT {column} FROM {table} WHERE sequence = {sequence}").fetchone()
            taken = {n for (n,) in connection.execute(f"SELECT sequence FROM {table}")}
            if number == before or (column == "sequence" and number in taken):
                continue
            connection.execute(f"UPDATE {table} SET {column} = {number} WHERE sequence = {sequence}")
        place = number if column == "sequence" else sequence
        faults = whole.verify()
        with sqlite3.connect(path) as connection:
            connection.execute(f"UPDATE {table} SET {column} = {before} WHERE sequence = {place}")
        assert {sequence, number} & {fault.sequence for fault in faults}
    assert whole.verify() == []


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    ledger = filled(folder)
    path = ledger.export(folder / "ledger.jsonl")
    head = ledger.head()
    assert head is not None
    yield path, head.entry_hash
    ledger.close()


@tampering
@given(st.data())
def test_a_byte_of_an_exported_ledger_is_named_by_its_line(export, data):
    path, head = export
    content = path.read_bytes()
    altered = changed(content, data)
    place = next(place for place, (one, other) in enumerate(zip(content, altered, strict=True)) if one != other)
    line = content[:place].count(b"\n") + 1
    try:
        path.write_bytes(altered)
        faults = verify_export(path)
    finally:
        path.write_bytes(content)
    # a lost line end is named by the line it ended or by the one that ran into it
    assert {line, line + 1} & {fault.sequence for fault in faults}
    assert verify_export(path, known_head=head) == []


def test_an_export_that_was_cut_at_its_end_is_found_by_a_head_noted_elsewhere(export, tmp_path):
    path, head = export
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:-2]) + b"\n")
    assert verify_export(shorter) == []
    assert [fault.kind for fault in verify_export(shorter, known_head=head)] == ["missing"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    for name, content in FILES.items():
        (root / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "model" / name).write_bytes(content)
    store = LocalStore(root / "objects")
    return store, store.put_directory("candidates/1/checkpoint", root / "model")


@tampering
@given(st.data())
def test_a_byte_of_a_stored_model_is_named_by_its_object(stored, tmp_path_factory, data):
    store, digest = stored
    objects = [key for key in store.list_keys() if store.size_bytes(key)]
    path = store.root / data.draw(st.sampled_from(objects))
    content = path.read_bytes()
    folder = tmp_path_factory.mktemp("fetched") / "model"
    try:
        path.write_bytes(changed(content, data))
        with pytest.raises(DigestMismatchError) as refusal:
            store.get_directory("candidates/1/checkpoint", folder, digest=digest)
    finally:
        path.write_bytes(content)
    assert path.name in str(refusal.value)
    assert not any(file.is_file() and file.name == path.name for file in folder.rglob("*"))


def test_the_same_model_unchanged_is_fetched(stored, tmp_path):
    store, digest = stored
    fetched = store.get_directory("candidates/1/checkpoint", tmp_path / "model", digest=digest)
    assert {name: (fetched / name).read_bytes() for name in FILES} == FILES


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"[]\n", b"null\n", b"\xff\xfe\n", b"[" * 5000 + b"\n"])
def test_what_is_no_export_is_a_fault_or_empty_never_a_crash(tmp_path, content):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(content)
    faults = verify_export(path)
    assert bool(faults) == bool(content)
    with pytest.raises(InfraError, match="expected an exported ledger"):
        verify_export(tmp_path / "nowhere.jsonl")
