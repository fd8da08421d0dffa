"""Schema changes of the ledger's database, on real ones."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, exc, inspect, text

from infra.chain import EntryKind
from infra.database import _MIGRATIONS, METADATA, SCHEMA_VERSION, VERSION_TABLE, migrate, schema_version, writing
from infra.errors import LedgerError
from infra.intents import find_intent
from infra.ledger import Ledger
from infra.locks import acquire_lock
from infra.personal import PersonalRecords


def make_as_before_migrations(engine: Engine) -> None:
    """A ledger with one entry, as versions without migrations left it: no version, no index, no table of locks."""
    Ledger(engine).append(EntryKind.PROMOTED, {"version": "1"})
    with writing(engine) as connection:
        for statement in (
            f"DROP TABLE {VERSION_TABLE}",
            "DROP INDEX ix_ledger_entries_kind",
            "DROP TABLE locks",
            "DROP TABLE intents",
        ):
            connection.execute(text(statement))


def test_the_newest_migration_is_the_one_that_is_asked_for():
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA_VERSION]


def test_migrations_give_the_tables_that_the_code_uses(engine):
    assert migrate(engine)
    assert not migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, METADATA) == []


def test_a_database_of_before_migrations_is_taken_over_with_all_it_holds(engine):
    make_as_before_migrations(engine)
    assert schema_version(engine) is None
    ledger = Ledger(engine)
    assert schema_version(engine) == SCHEMA_VERSION
    assert [entry.body for entry in ledger.entries()] == [{"version": "1"}]
    assert ledger.verify() == []
    acquire_lock(engine, owner="a", lease_seconds=1).release()
    assert find_intent(engine, "champion") is None
    with pytest.raises(exc.IntegrityError, match="append-only"), writing(engine) as connection:
        connection.execute(text("UPDATE ledger_entries SET kind = 'x'"))


def test_a_database_of_a_later_version_is_left_alone(engine):
    migrate(engine)
    with writing(engine) as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(LedgerError, match="found 9999; update scapre"):
        Ledger(engine)


def test_a_migration_that_fails_leaves_nothing_behind(engine, monkeypatch):
    monkeypatch.setattr("infra.database.SCHEMA_VERSION", "0042")
    with pytest.raises(Exception, match="0042"):
        migrate(engine)
    assert inspect(engine).get_table_names() == []


def test_many_who_open_a_new_database_at_once_all_find_it_ready(engine):
    def open_both(_):
        return Ledger(engine).verify(), PersonalRecords(engine).find("req-1")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(open_both, range(8))) == [([], None)] * 8
    assert schema_version(engine) == SCHEMA_VERSION
