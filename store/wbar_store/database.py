"""Connections and transactions on SQLite and PostgreSQL, the tenant's filter, and the database's own clock.

One rule for transactions: a repository's method is one transaction; where several calls must be one, they stand in a block
`with database.write():` (or `read()`) on the same thread, and every call in the block joins it. An exception that leaves the
block rolls all of it back. No transaction spans I/O of another kind, with one exception that `wbar_store.blobs` explains.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property, lru_cache
from typing import Any, overload

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Engine,
    Row,
    Select,
    Table,
    bindparam,
    create_engine,
    event,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import QueuePool, StaticPool
from sqlalchemy.sql.functions import FunctionElement

from wbar_store import documents, row_security


class now(FunctionElement[float]):  # noqa: N801  # reads as the SQL function it is
    """Seconds since 1970 by the database's clock: leases must not depend on how well the hosts' clocks agree."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(_element: Any, _compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(_element: Any, _compiler: Any, **_: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


# What a database that is away, or has no connection free, raises. Any other DBAPIError is about what was asked of it.
UNAVAILABLE = (OperationalError, InterfaceError, NoConnectionFree)

# PostgreSQL ends a transaction whose client has been silent for so long: its host is frozen or cut off, and the rows that it
# has locked are those that its successor, and the sweeper, wait for.
IDLE_SECONDS = 15.0
ASK_AGAIN_SECONDS = 60.0

_WRITES, _DURABLE = "wbar_writes", "wbar_durable"


class _Block(threading.local):
    """The transaction that is open on this thread: a connection never crosses to another one."""

    connection: Connection | None = None
    writes: bool = False


class Database:
    """An engine with transactions for reading and for writing; both join the block that the thread has open, if any."""

    def __init__(self, url: str) -> None:
        if url.startswith("postgresql://"):
            url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        self.engine = _sqlite(url) if url.startswith("sqlite") else _postgresql(url)
        self._at_once = _sqlite_at_once(url) if url.startswith("sqlite") else None
        self._block = _Block()
        self._walled = False  # whether PostgreSQL lets us take a tenant's role
        self._ask_again_at = 0.0  # where it did not: an administrator, or a migration, may change that

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a block whose reads all see one state of the database."""
        if self._block.connection is not None:
            yield self._block.connection
            return
        with self.engine.connect() as connection, self._opened(connection, writes=False):
            self._as_tenant(connection)
            yield connection

    def seconds_now(self) -> float:
        """Return the seconds since 1970 by the database's clock."""
        with self.read() as connection:
            return float(connection.execute(select(now())).scalar_one())

    @contextmanager
    def read_at_once(self) -> Iterator[bool]:
        """Open a block of `read()` for a thread that must not wait, such as an event loop's.

        Yields False, and opens no block, where the database is not in a file. Each statement is a transaction of its own,
        and raises OperationalError instead of waiting for a lock.
        """
        if self._at_once_connection is None:
            yield False
            return
        with self._opened(self._at_once_connection, writes=False):
            yield True

    @cached_property
    def _at_once_connection(self) -> Connection | None:
        # It stays open: getting one for each row takes as long as reading the row.
        return self._at_once.connect() if self._at_once else None

    @contextmanager
    def write(self, durable: bool = True) -> Iterator[Connection]:
        """Open a transaction, committed at the end of the outermost block, rolled back by an exception.

        durable: if false, a power cut may undo it (a killed process does not); for heartbeats, which come twice a
            second. Only SQLite makes a difference: it would sync the disk for each.

        Raises RuntimeError inside a block of `read()`.
        """
        if self._block.connection is not None:
            if not self._block.writes:
                raise RuntimeError("a write inside a block of read(): open the block with write()")
            yield self._block.connection
            return
        options = {_WRITES: True, _DURABLE: durable}
        with (
            self.engine.connect().execution_options(**options) as connection,
            connection.begin(),
            self._opened(connection, writes=True),
        ):
            self._as_tenant(connection)
            yield connection

    def _as_tenant(self, connection: Connection) -> None:
        """Raise the second wall between tenants, where there is one, for the transaction that begins."""
        if connection.dialect.name != "postgresql" or not row_security.acting():
            return
        if not self._walled and time.monotonic() > self._ask_again_at:
            self._walled = row_security.available(connection)
            self._ask_again_at = time.monotonic() + ASK_AGAIN_SECONDS
        if self._walled:
            row_security.enter(connection)

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """Open a transaction for migrations, which may make a table anew.

        SQLite changes most of a table by copying it and dropping the old one, and the drop would delete, by ON DELETE
        CASCADE, every row that refers to it. So foreign keys are off until the transaction ends, and checked before it does.

        Raises IntegrityError if a row refers to one that is not there; nothing is changed then.
        """
        with self.engine.connect().execution_options(**{_WRITES: True, _DURABLE: True}) as connection:
            driver = connection.connection.dbapi_connection
            assert driver is not None
            sqlite_file = connection.dialect.name == "sqlite"
            if sqlite_file:
                driver.execute("PRAGMA foreign_keys=OFF")  # before BEGIN: inside a transaction it does nothing
            try:
                with connection.begin(), self._opened(connection, writes=True):
                    yield connection
                    if sqlite_file:
                        _check_foreign_keys(connection)
            finally:
                if sqlite_file:
                    driver.execute("PRAGMA foreign_keys=ON")

    @contextmanager
    def _opened(self, connection: Connection, writes: bool) -> Iterator[None]:
        self._block.connection, self._block.writes = connection, writes
        try:
            yield
        finally:
            self._block.connection = None

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()
        if self._at_once is not None:
            if (connection := self.__dict__.pop("_at_once_connection", None)) is not None:
                connection.close()
            self._at_once.dispose()


def _check_foreign_keys(connection: Connection) -> None:
    wrong = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if wrong:
        table, _, parent, _ = wrong[0]
        message = f"{len(wrong)} rows refer to rows that do not exist, the first of them in {table} to {parent}"
        raise IntegrityError("PRAGMA foreign_key_check", None, ValueError(message))


def _postgresql(url: str) -> Engine:
    # A server that vanishes must not hold a heartbeat for ever.
    vanished = {"connect_timeout": 10, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3}
    engine = create_engine(
        url, pool_pre_ping=True, pool_size=8, connect_args=vanished, json_deserializer=documents.load
    )

    @event.listens_for(engine, "connect")
    def _limit(connection: Any, _record: Any) -> None:
        # By a statement: connection poolers refuse it among the options of a connection.
        connection.execute(f"SET idle_in_transaction_session_timeout = {int(IDLE_SECONDS * 1000)}")
        connection.commit()

    return engine


def _sqlite(url: str) -> Engine:
    engine = create_engine(
        url, poolclass=QueuePool, pool_size=8, max_overflow=32, connect_args=_sqlite_connect(waiting=30),
        json_deserializer=documents.load,
    )  # fmt: skip
    event.listen(engine, "connect", _prepare)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A plain BEGIN that reads first and writes later fails "locked" under contention; IMMEDIATE waits.
        options = connection.get_execution_options()
        writes = options.get(_WRITES, False)
        if writes:
            # FULL: a committed row survives a power cut, as its blob does.
            connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options.get(_DURABLE, True) else 'NORMAL'}")
        # The driver's own call: SQLAlchemy's, made for statements with results, takes several times as long.
        driver = connection.connection.dbapi_connection
        assert driver is not None
        driver.execute("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _sqlite_at_once(url: str) -> Engine:
    engine = create_engine(
        url, poolclass=StaticPool, connect_args=_sqlite_connect(waiting=0), json_deserializer=documents.load,
        isolation_level="AUTOCOMMIT",
    )  # fmt: skip
    event.listen(engine, "connect", _prepare)
    return engine


def _sqlite_connect(waiting: float) -> dict[str, Any]:
    """Have transactions begin where we say so, not where the driver would. waiting: seconds for a lock."""
    return {"timeout": waiting, "isolation_level": None, "check_same_thread": False}


def _prepare(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA foreign_keys=ON")


@dataclass(frozen=True)
class Tenant:
    """An owner of rows, and the one place where rows are filtered by their owner."""

    name: str

    def select(self, table: Table) -> Select[Any]:
        """Select all rows of `table` that are this tenant's."""
        return select(table).where(table.c.tenant == self.name)

    def row(self, connection: Connection, table: Table, object_id: str, lock: bool = False) -> Row[Any] | None:
        """Return the row of this id if it is this tenant's; lock: hold it until the transaction ends."""
        return self.first(connection, _one_row(table, lock), object_id)

    def first(self, connection: Connection, statement: Select[Any], object_id: str) -> Row[Any] | None:
        """Return the row that a statement of `one_row` finds among this tenant's."""
        return connection.execute(statement, {"of_tenant": self.name, "of_id": object_id}).first()


def one_row(table: Table, *columns: ColumnElement[Any]) -> Select[Any]:
    """Select these columns of one row, by the tenant and the id that `Tenant.first` gives it.

    Such a statement is worth keeping: building one of thirty columns takes longer than running it.
    """
    return select(*columns).where(table.c.tenant == bindparam("of_tenant"), table.c.id == bindparam("of_id"))


@cache
def _one_row(table: Table, lock: bool) -> Select[Any]:
    return one_row(table, *table.c).with_for_update() if lock else one_row(table, *table.c)


def clock(connection: Connection) -> float:
    """Return the database's time, in seconds since 1970."""
    return float(connection.execute(select(now())).scalar_one())


def upsert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Return an insert that can say what happens on a conflict, in the dialect of the connection."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


@overload
def rfc3339(seconds: float) -> str: ...
@overload
def rfc3339(seconds: None) -> None: ...
def rfc3339(seconds: float | None) -> str | None:
    """Format seconds since 1970 in UTC, with microseconds and a Z."""
    return None if seconds is None else _formatted(seconds)


@lru_cache(maxsize=4096)  # a client that polls asks for the same few times again and again
def _formatted(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
