"""Run by Alembic: migrates over the connection, and in the transaction, that `migrate` opened."""

from __future__ import annotations

from alembic import context

from orchestrator.ledger.storage.indexes import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
