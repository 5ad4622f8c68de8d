"""Bring a database's tables to this version (`wbar migrate`, and the first thing `wbar up` does)."""

from importlib.resources import files

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from wbar_store import blob_guard, row_security
from wbar_store.database import Database
from wbar_store.tables import metadata


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("wbar_store").joinpath("migrations")))
    config.attributes["connection"] = connection
    return config


def upgrade(database: Database) -> None:
    """Run the migrations that are missing; on PostgreSQL under a lock, so that two starts do not race."""
    with database.migrating() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(797226)")
        if connection.dialect.name == "sqlite":
            blob_guard.remove(connection)  # no table that a trigger names can be made anew
        command.upgrade(_config(connection), "head")
        if connection.dialect.name == "postgresql":
            row_security.install(connection)
        blob_guard.install(connection)


def downgrade(database: Database, revision: str) -> None:
    """Take the tables back to an earlier revision, or to nothing (`base`); what it has no place for is lost."""
    with database.migrating() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(797226)")
        blob_guard.remove(connection)
        command.downgrade(_config(connection), revision)


def new_revision(database: Database, message: str) -> None:
    """Write the migration from the database as it is to `wbar_store.tables` (for developers)."""
    with database.write() as connection:
        command.revision(_config(connection), message=message, autogenerate=True)


def difference(database: Database) -> list[object]:
    """Return the differences between `wbar_store.tables` and the database; empty when they agree."""
    with database.read() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))
