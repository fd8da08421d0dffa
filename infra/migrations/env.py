"""What Alembic runs: the migrations, on the connection that `infra.database` hands over, in its transaction."""

from alembic import context

from infra.database import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
