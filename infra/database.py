"""The SQL database behind ledger, personal records and locks: SQLite by default, PostgreSQL when outgrown.

* A writing transaction holds SQLite's write lock from its first statement, so reading and then writing is one step.
* Busy, cut and full databases become `TransientFailure` or `NoSpaceError`; broken constraints are left to the caller.
* Deleted content is overwritten on disk, not merely unlinked (SQLite).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, MetaData, Table, create_engine, event, exc, inspect, make_url, text

from infra.errors import LedgerError, NoSpaceError, SettingsError, TransientFailure

METADATA = MetaData()
BUSY_TIMEOUT_SECONDS = 30.0
_SCHEMA_LOCK = 0x5CA9  # any number, the same in every process: PostgreSQL's advisory lock around table creation
_TRANSIENT_PG_CLASSES = ("08", "40", "53", "55", "57")


def open_database(url: str) -> Engine:
    """Returns an engine; SQLite files get their folder, nothing else is created yet.

    Raises:
        SettingsError: an in-memory database, which would forget everything at exit.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    if not parsed.database or parsed.database == ":memory:":
        raise SettingsError(
            "expected a database that outlives the process, found SQLite in memory; set SCAPRE_LEDGER_URL to "
            "sqlite:///path/ledger.db"
        )
    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})

    @event.listens_for(engine, "connect")
    def prepare(dbapi_connection, _record) -> None:
        dbapi_connection.isolation_level = None  # sqlite3 would begin by itself, later and without the write lock
        dbapi_connection.execute("PRAGMA secure_delete = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        is_writer = connection.get_execution_options().get("is_writer", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")

    return engine


@contextmanager
def writing(engine: Engine) -> Generator[Connection]:
    """A transaction that commits when the block ends without an error.

    Raises:
        TransientFailure: busy, cut off or restarted; the transaction did not happen.
        NoSpaceError: the disk is full.
        sqlalchemy.exc.IntegrityError: a constraint refused; the caller knows what that means.
    """
    with _sorted_failures(), engine.connect().execution_options(is_writer=True) as connection, connection.begin():
        yield connection


@contextmanager
def reading(engine: Engine) -> Generator[Connection]:
    """A transaction that sees one moment of the database, however many statements it runs."""
    with _sorted_failures(), engine.connect() as connection:
        if engine.dialect.name != "sqlite":  # SQLite's transactions are snapshots already
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


def create_tables(engine: Engine, tables: Sequence[Table]) -> None:
    """Creates the tables that are missing; safe from many processes at once, and read-only when all exist."""
    with reading(engine) as connection:
        present = set(inspect(connection).get_table_names())
    if all(table.name in present for table in tables):
        return
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})
        METADATA.create_all(connection, tables=list(tables))


@contextmanager
def _sorted_failures() -> Generator[None]:
    try:
        yield
    except exc.IntegrityError:
        raise
    except exc.TimeoutError as error:
        raise TransientFailure(f"expected a free database connection, found none in time ({error}); retry") from error
    except exc.DBAPIError as error:
        sqlite_name = str(getattr(error.orig, "sqlite_errorname", ""))
        pg_code = getattr(error.orig, "pgcode", "")
        if sqlite_name == "SQLITE_FULL" or pg_code == "53100":
            raise NoSpaceError(
                f"expected room in the database, found its disk full ({error.orig}); free space, then retry"
            ) from error
        is_busy = sqlite_name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
        # psycopg2 gives no code when the server could not be reached at all
        is_cut = not sqlite_name and (pg_code is None or str(pg_code).startswith(_TRANSIENT_PG_CLASSES))
        if is_busy or is_cut:
            raise TransientFailure(f"expected the database to answer, found {error.orig}; try again") from error
        raise LedgerError(f"expected a usable database, found {error.orig}; check SCAPRE_LEDGER_URL") from error
