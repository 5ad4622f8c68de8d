"""What happened so often: raised in the transaction of the event it counts, or by the process that saw it. Never lowered.

A monitor asks an API process; sweeper and workers have no port of their own, and what they count would die with them.
"""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select

from wbar_store.database import Database, now, upsert
from wbar_store.tables import counters

# jobs_ended: by status. lease_expiries: jobs whose worker fell silent, by what became of them. sweeps: looks of all
# sweepers, by outcome. notified_again: by queue.
CounterName = Literal["jobs_ended", "lease_expiries", "sweeps", "notified_again"]


@dataclass(frozen=True)
class CounterRecord:
    """How often it happened; raised_seconds: since the last time."""

    name: str
    label: str
    value: int
    raised_seconds: float


class Counters:
    """The counters of the whole service."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, name: CounterName, label: str, times: int = 1) -> None:
        """Raise a counter, in the transaction that is open if there is one. label: what sort of it."""
        with self.database.write(durable=False) as connection:
            statement = upsert(connection, counters).values(name=name, label=label, value=times, raised_at=now())
            raised = {"value": counters.c.value + statement.excluded.value, "raised_at": now()}
            connection.execute(
                statement.on_conflict_do_update(index_elements=[counters.c.name, counters.c.label], set_=raised)
            )

    def all(self) -> list[CounterRecord]:
        """Return every counter that was ever raised, by name and label."""
        query = select(counters, (now() - counters.c.raised_at).label("seconds"))
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(counters.c.name, counters.c.label))
            return [CounterRecord(row.name, row.label, row.value, row.seconds) for row in rows]
