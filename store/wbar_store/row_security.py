"""PostgreSQL's row-level security, the second wall between tenants: the first is `Tenant`, the filter in every query.

The API serves each request as one tenant (`act_for`). Every transaction of the request then has the role `wbar_tenant`, for
which every table with a tenant shows that tenant's rows and takes no others: a query that forgot its filter finds nothing
that is not the tenant's. Workers and the sweeper act for all tenants, so their role stays what it is, and no policy holds
them. SQLite has no roles.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sqlalchemy import Connection, Table, text
from sqlalchemy.exc import DataError, DBAPIError, ProgrammingError

from wbar_store import tables

log = logging.getLogger("wbar.store")

ROLE, SETTING = "wbar_tenant", "wbar.tenant"
_acting: ContextVar[str | None] = ContextVar("wbar_tenant", default=None)

OF_A_TENANT: tuple[Table, ...] = (
    tables.api_keys,
    tables.sessions,
    tables.checkpoints,
    tables.datasets,
    tables.jobs,
    tables.merges,
    tables.studies,
    tables.idempotency,
    tables.webhooks,
    tables.webhook_deliveries,
    tables.resumable_uploads,
)
OF_A_JOB: tuple[Table, ...] = (
    tables.job_metadata,
    tables.job_inputs,
    tables.events,
    tables.metrics,
    tables.snapshots,
    tables.job_files,
)
OF_AN_UPLOAD: tuple[Table, ...] = (tables.upload_parts,)
OF_A_MERGE: tuple[Table, ...] = (tables.merge_inputs,)
OF_A_STUDY: tuple[Table, ...] = (tables.study_children,)
OF_NOBODY: tuple[Table, ...] = (tables.blobs, tables.workers, tables.counters, tables.architectures)

_ENTER = text("SELECT set_config(:setting, :tenant, true), set_config('role', :role, true)")
_ROLE = text("SELECT set_config('role', :role, true)")
_POLICIES = text("SELECT tablename, policyname FROM pg_policies WHERE schemaname = current_schema()")


def act_for(tenant: str | None) -> None:
    """Have every transaction of the current context (a request's task, and the threads it waits for) be this tenant's.

    None: of no tenant. A server may begin a request in the context of the one before it on the same connection.
    """
    _acting.set(tenant)


def available(connection: Connection) -> bool:
    """Return whether the connection's user may take the role, and the tables are ready for it; says what is missing."""
    ready = _can_take_role(connection, and_read="jobs")
    if not ready:
        log.warning("no row-level security: %s", missing(connection))
    return ready


def enter(connection: Connection) -> None:
    """Begin the transaction as the tenant of the current context, if there is one. For PostgreSQL."""
    tenant = _acting.get()
    if tenant is not None:
        connection.execute(_ENTER, {"setting": SETTING, "tenant": tenant, "role": ROLE})


def acting() -> bool:
    """Return whether the current context serves one tenant."""
    return _acting.get() is not None


@contextmanager
def lifted(connection: Connection) -> Iterator[None]:
    """Have the block's statements see the rows of all tenants: for what is decided by all of them, such as unused blobs.

    The transaction goes on as the tenant afterwards; after an exception it can only be rolled back.
    """
    entered = False
    if acting() and connection.dialect.name == "postgresql":
        entered = connection.execute(text("SELECT current_user")).scalar_one() == ROLE
    if entered:
        connection.execute(_ROLE, {"role": "none"})
    yield
    if entered:
        connection.execute(_ROLE, {"role": ROLE})


def install(connection: Connection) -> None:
    """Make the role, its rights and the policies, or bring them up to date; part of every migration on PostgreSQL.

    A user who may not create roles gets no second wall, and a warning that says what an administrator has to run.
    """
    try:
        with connection.begin_nested():
            _create_role(connection)
    except DBAPIError:
        log.warning("no row-level security: %s", missing(connection))
        return
    there = {(row.tablename, row.policyname) for row in connection.execute(_POLICIES)}
    schema = connection.dialect.identifier_preparer.quote(
        connection.execute(text("SELECT current_schema()")).scalar_one()
    )
    connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {ROLE}")
    for table in (*OF_A_TENANT, *OF_A_JOB, *OF_AN_UPLOAD, *OF_A_MERGE, *OF_A_STUDY, *OF_NOBODY):
        connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table.name} TO {ROLE}")
    for table in (*OF_A_TENANT, *OF_A_JOB, *OF_AN_UPLOAD, *OF_A_MERGE, *OF_A_STUDY):
        mine = _mine(table)
        name = f"{ROLE}_{hashlib.sha256(mine.encode()).hexdigest()[:8]}"
        if (table.name, name) in there:
            continue
        for _, old in (one for one in there if one[0] == table.name and one[1].startswith(f"{ROLE}_")):
            connection.exec_driver_sql(f"DROP POLICY {old} ON {table.name}")
        connection.exec_driver_sql(f"CREATE POLICY {name} ON {table.name} USING ({mine})")
        connection.exec_driver_sql(f"ALTER TABLE {table.name} ENABLE ROW LEVEL SECURITY")


def _create_role(connection: Connection) -> None:
    if _can_take_role(connection):
        return  # an administrator may have made it for a user who may not
    # Roles belong to the whole server: another database may have made it, perhaps at this moment.
    connection.exec_driver_sql(
        f"DO $$ BEGIN CREATE ROLE {ROLE} NOLOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
    )
    if not _can_take_role(connection):  # since PostgreSQL 16 whoever made a role may grant it, and not take it
        connection.exec_driver_sql(f"GRANT {ROLE} TO CURRENT_USER")


def _can_take_role(connection: Connection, and_read: str | None = None) -> bool:
    """Return whether the user may take the role. Tried, since the rules differ between versions; nothing stays of it.

    and_read: a table that the role must be able to read, behind a policy.
    """
    attempt = connection.begin_nested()
    try:
        connection.execute(_ROLE, {"role": ROLE})
        if and_read is not None:
            connection.exec_driver_sql(f"SELECT FROM {and_read} LIMIT 0")
    except (ProgrammingError, DataError):  # not allowed; no such role. An outage is something else
        return False
    finally:
        attempt.rollback()
    return and_read is None or any(
        row.tablename == and_read and row.policyname.startswith(f"{ROLE}_") for row in connection.execute(_POLICIES)
    )


def _mine(table: Table) -> str:
    """Return the condition of a table's policy: everybody but the role passes, for whom the table's owner is no measure."""
    if table in OF_A_JOB:
        owned = f"EXISTS (SELECT FROM jobs WHERE jobs.id = {table.name}.job)"  # the policy of `jobs` holds in there
    elif table in OF_A_MERGE:
        owned = f"EXISTS (SELECT FROM merges WHERE merges.id = {table.name}.merge)"
    elif table in OF_A_STUDY:
        owned = f"EXISTS (SELECT FROM studies WHERE studies.id = {table.name}.study)"
    elif table in OF_AN_UPLOAD:
        owned = f"EXISTS (SELECT FROM resumable_uploads WHERE resumable_uploads.id = {table.name}.upload)"
    else:
        owned = f"tenant = current_setting('{SETTING}', true)"
    return f"current_user <> '{ROLE}' OR {owned}"


def missing(connection: Connection) -> str:
    """Return what an administrator has to run."""
    user = connection.execute(text("SELECT current_user")).scalar_one()
    return (
        f'{user} may not take the role {ROLE}; as an administrator: CREATE ROLE {ROLE} NOLOGIN; GRANT {ROLE} TO "{user}"; '
        "then `wbar migrate` again"
    )
