"""Short reads for routes that clients poll, without a change of thread where the database allows it.

Handing a read to a thread and waiting for it costs more than the read of a row by its key. SQLite in WAL mode answers such a
read without waiting for anybody: readers do not wait for writers. So it is done in the event loop, on a connection of its
own that refuses to wait. PostgreSQL is at the other end of a network: there, and where SQLite is busy after all (it recovers
after a crash), a thread waits.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from anyio.to_thread import run_sync
from sqlalchemy.exc import OperationalError

from wbar_store.database import Database

Found = TypeVar("Found")


async def read(database: Database, query: Callable[[], Found]) -> Found:
    """Return the result of `query`, which makes one statement that finds a row by its key."""
    # What stands in the way of it, if it is not another's lock, stands in the way of the thread too and is raised there.
    with suppress(OperationalError), database.read_at_once() as possible:
        if possible:
            return query()
    return await run_sync(query)
