"""The database's own guard of blobs: one that a row names is not marked for deletion, whichever version's code asks for it.

`wbar_store.blob_references` decides by the columns that its version knows. While an upgrade rolls through, a sweeper of the
version before does not know the columns of this one, and takes their blobs for unused. A trigger leaves the mark off such a
blob; a blob without a mark is never deleted.
"""

from sqlalchemy import Connection

from wbar_store.tables import REFERENCES

NAME = "keep_named_blobs"

_NAMED = " OR ".join(
    f"EXISTS (SELECT 1 FROM {column.table.name} WHERE {column.table.name}.{column.name} = NEW.sha256)"  # noqa: S608  # our own names
    for column in REFERENCES
)
_MARKING = "BEFORE UPDATE OF deleting ON blobs FOR EACH ROW WHEN (NEW.deleting AND NOT OLD.deleting"
_HAS_TRIGGER = f"SELECT 1 FROM pg_trigger WHERE tgrelid = 'blobs'::regclass AND tgname = '{NAME}'"  # noqa: S608  # our own name


def install(connection: Connection) -> None:
    """Make the trigger for the columns of this version; the last part of every migration."""
    if connection.dialect.name == "sqlite":
        remove(connection)
        connection.exec_driver_sql(f"CREATE TRIGGER {NAME} {_MARKING} AND ({_NAMED})) BEGIN SELECT RAISE(IGNORE); END")
        return
    body = f"BEGIN IF {_NAMED} THEN RETURN NULL; END IF; RETURN NEW; END"
    connection.exec_driver_sql(f"CREATE OR REPLACE FUNCTION {NAME}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
    if connection.exec_driver_sql(_HAS_TRIGGER).first() is None:  # to make it waits for every writer of the table
        connection.exec_driver_sql(f"CREATE TRIGGER {NAME} {_MARKING}) EXECUTE FUNCTION {NAME}()")


def remove(connection: Connection) -> None:
    """Take the trigger away, if it is there: tables that it looks at can be changed then."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {NAME}")
    else:
        connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS {NAME}() CASCADE")
