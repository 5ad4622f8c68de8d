"""The workers that live: each says so every few seconds, for `/readyz` and for what `precision: auto` means."""

from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import delete, select

from wbar_store.database import Database, now, upsert
from wbar_store.tables import workers

SILENCE = 15.0  # seconds after which a worker that was not seen does not count as live

Queue = Literal["train", "ingest"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class GpuMemory:
    """The memory of one GPU, in bytes. uuid: the driver's name of it, the same for every worker of the host."""

    uuid: str
    used: int
    total: int


@dataclass(frozen=True)
class WorkerRecord:
    """A live worker. slots: how many jobs or uploads it takes at a time. gpus: of its host, whoever uses them."""

    name: str
    queue: Queue
    device: Device
    slots: int
    gpus: tuple[GpuMemory, ...] = ()


class Workers:
    """The workers that live."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def seen(self, worker: WorkerRecord) -> None:
        """Record that a worker lives."""
        values: dict[str, object] = {"queue": worker.queue, "device": worker.device, "slots": worker.slots}
        values["seen_at"] = now()
        values["gpus"] = [asdict(gpu) for gpu in worker.gpus] or None
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
            return [
                WorkerRecord(
                    row.name, row.queue, row.device, row.slots, tuple(GpuMemory(**gpu) for gpu in row.gpus or ())
                )
                for row in connection.execute(query)
            ]
