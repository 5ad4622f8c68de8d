"""Alembic's entry: `wbar_store.migrate.upgrade` hands over the connection."""

from alembic import context

from wbar_store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=connection.dialect.name == "sqlite")
with context.begin_transaction():
    context.run_migrations()
