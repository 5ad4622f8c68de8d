"""The workers that live: each says so every few seconds, for `/readyz` and for what `precision: auto` means."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import delete, select

from wbar_store.database import Database, now, upsert
from wbar_store.tables import workers

SILENCE = 15.0  # seconds after which a worker that was not seen does not count as live

Queue = Literal["train", "ingest"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class WorkerRecord:
    """A live worker. slots: how many jobs or uploads it takes at a time."""

    name: str
    queue: Queue
    device: Device
    slots: int


class Workers:
    """The workers that live."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def seen(self, worker: WorkerRecord) -> None:
        """Record that a worker lives."""
        values = {"queue": worker.queue, "device": worker.device, "slots": worker.slots, "seen_at": now()}
        with self.database.write() as connection:
            statement = upsert(connection, workers).values(name=worker.name, **values)
            connection.execute(statement.on_conflict_do_update(index_elements=[workers.c.name], set_=values))

    def gone(self, name: str) -> None:
        """Remove a worker that ends."""
        with self.database.write() as connection:
            connection.execute(delete(workers).where(workers.c.name == name))

    def live(self) -> list[WorkerRecord]:
        """Return every worker that was seen lately."""
        query = select(workers).where(workers.c.seen_at > now() - SILENCE).order_by(workers.c.name)
        with self.database.read() as connection:
            return [WorkerRecord(row.name, row.queue, row.device, row.slots) for row in connection.execute(query)]
