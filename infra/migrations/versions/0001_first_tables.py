"""Ledger, receipts, personal records and locks, with the triggers that refuse to change the ledger.

Databases of before there were migrations hold these tables already: what is there is left as it is.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_APPEND_ONLY = ("ledger_entries", "ledger_receipts")
_REFUSE = "RAISE(ABORT, 'the ledger is append-only')"


def upgrade() -> None:
    """Creates what is missing."""
    op.create_table(
        "ledger_entries",
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("format", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("parent_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("entry_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("idempotency_key", sa.String(255), nullable=True, unique=True),
        if_not_exists=True,
    )
    op.create_table(
        "ledger_receipts",
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("entry_hash", sa.String(64), nullable=False, unique=True),
        if_not_exists=True,
    )
    op.create_table(
        "personal_records",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("salt", sa.String(64), nullable=False),
        sa.Column("contact", sa.Text, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "locks",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("token", sa.String(64), nullable=False),
        sa.Column("expires_at", sa.Float(53), nullable=False),
        if_not_exists=True,
    )
    statements = _sqlite_triggers if op.get_bind().dialect.name == "sqlite" else _postgresql_triggers
    for statement in statements():
        op.execute(statement)


def _sqlite_triggers() -> list[str]:
    found = []
    for table in _APPEND_ONLY:
        for name, event in (("update", "BEFORE UPDATE"), ("delete", "BEFORE DELETE")):
            found.append(
                f"CREATE TRIGGER IF NOT EXISTS {table}_no_{name} {event} ON {table} BEGIN SELECT {_REFUSE}; END"
            )
        # INSERT OR REPLACE deletes without firing the triggers above
        found.append(
            f"CREATE TRIGGER IF NOT EXISTS {table}_no_replace BEFORE INSERT ON {table} WHEN EXISTS "  # noqa: S608
            f"(SELECT 1 FROM {table} WHERE sequence = NEW.sequence OR entry_hash = NEW.entry_hash) "
            f"BEGIN SELECT {_REFUSE}; END"
        )
    return found


def _postgresql_triggers() -> list[str]:
    function = (
        "CREATE OR REPLACE FUNCTION scapre_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$"
    )
    return [
        function,
        *(
            f"CREATE OR REPLACE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION scapre_refuse_change()"
            for table in _APPEND_ONLY
        ),
    ]
