"""Alembic entry: run the migrations on the connection and in the transaction of the caller."""

from __future__ import annotations

from alembic import context

from trunkline.registry.tables import Table

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Table.metadata,
    transactional_ddl=True,
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
