"""The store as every process opens it: one database, one blob store, one notifier, and what stands on them."""

from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from wbar_store.blobs import Blobs
from wbar_store.database import Database, now
from wbar_store.idempotency import Idempotency
from wbar_store.jobs import Jobs
from wbar_store.notifier import Notifier
from wbar_store.settings import StoreSettings
from wbar_store.tables import workers
from wbar_store.uploads import Uploads

WORKER_SILENCE = 15.0  # a worker that was not seen for so many seconds does not count as live


@dataclass
class Store:
    database: Database
    blobs: Blobs
    notifier: Notifier

    @classmethod
    def open(cls, settings: StoreSettings) -> "Store":
        database = Database(settings.database_url)
        return cls(database, Blobs(settings.blobs_url, database), Notifier(settings.broker_url))

    @cached_property
    def jobs(self) -> Jobs:
        return Jobs(self.database, self.notifier)

    @cached_property
    def uploads(self) -> Uploads:
        return Uploads(self.database, self.notifier)

    @cached_property
    def idempotency(self) -> Idempotency:
        return Idempotency(self.database)

    def worker_seen(self, name: str, queue: str, device: str, slots: int) -> None:
        with self.database.write() as connection:
            statement = {"sqlite": sqlite, "postgresql": postgresql}[connection.dialect.name].insert(workers)
            values = {"queue": queue, "device": device, "slots": slots, "seen_at": now()}
            connection.execute(
                statement.values(name=name, **values).on_conflict_do_update(
                    index_elements=[workers.c.name], set_=values
                )
            )

    def worker_gone(self, name: str) -> None:
        with self.database.write() as connection:
            connection.execute(delete(workers).where(workers.c.name == name))

    def live_workers(self) -> list[tuple[str, str, str]]:
        """(name, queue, device) of every worker that was seen lately."""
        with self.database.read() as connection:
            found = select(workers).where(workers.c.seen_at > now() - WORKER_SILENCE)
            return [(row.name, row.queue, row.device) for row in connection.execute(found)]

    def close(self) -> None:
        self.notifier.close()
        self.database.dispose()
