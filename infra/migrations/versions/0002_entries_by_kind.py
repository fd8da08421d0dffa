"""An index for what is asked most often: the entries of one kind."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the index."""
    op.create_index("ix_ledger_entries_kind", "ledger_entries", ["kind", "sequence"])
