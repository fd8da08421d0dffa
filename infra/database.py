"""The SQL database behind ledger, personal records and locks: SQLite by default, PostgreSQL when outgrown.

* A writing transaction holds SQLite's write lock from its first statement, so reading and then writing is one step.
* Busy, cut and full databases become `TransientFailure` or `NoSpaceError`; broken constraints are left to the caller.
* The schema changes by migrations only, which run when a database is opened by the first who needs its tables.
* Deleted content is overwritten on disk, not merely unlinked (SQLite).
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, exc, inspect, make_url, text

from infra.errors import LedgerError, NoSpaceError, SettingsError, TransientFailure

METADATA = MetaData()
VERSION_TABLE = "ledger_schema"
"""Not Alembic's usual name: MLflow takes that one, and may live in the same database."""
SCHEMA_VERSION = "0003"
"""The newest of the migrations."""
BUSY_TIMEOUT_SECONDS = 30.0
_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATING = threading.Lock()  # Alembic's context belongs to the whole process
_SCHEMA_LOCK = 0x5CA9  # any number, the same in every process: PostgreSQL's advisory lock around a migration
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
        # text that is no longer UTF-8 is still read, so that a check can name the entry it is in
        dbapi_connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")

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


def migrate(engine: Engine) -> bool:
    """Brings a database to this version's schema; says whether anything was done.

    Safe from many processes at once, all or nothing, and read-only when there is nothing to do. A database of before
    there were migrations is taken over as it is.

    Raises:
        LedgerError: The database was made by a later version.
    """
    found = schema_version(engine)
    if found == SCHEMA_VERSION:
        return False
    if found is not None and found > SCHEMA_VERSION:
        raise LedgerError(
            f"expected a database of schema {SCHEMA_VERSION} or earlier, found {found}; update scapre, or open the "
            "database with the version that made it"
        )
    from alembic import command  # only paid for where it is used
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with _MIGRATING, writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, SCHEMA_VERSION)
    return True


def schema_version(engine: Engine) -> str | None:
    """Returns which migration a database is at, or None for a new one and one of before there were migrations."""
    with reading(engine) as connection:
        if not inspect(connection).has_table(VERSION_TABLE):
            return None
        return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608  a constant


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
