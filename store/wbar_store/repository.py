"""What all repositories of a tenant's objects share: typed frozen records out, `get` and `page` by tenant.

A record is one row as plain typed values; `to_api` makes of it what a user is sent, and is the only place that does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, Row, Select, Table

from wbar.errors import NotFound
from wbar_store.database import Database, Tenant


class Record(BaseModel):
    """One row. Its fields are columns by name; columns that no field names stay behind."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        return cls.model_validate(dict(row._mapping))


AnyRecord = TypeVar("AnyRecord", bound=Record)
Item = TypeVar("Item")


@dataclass(frozen=True)
class PageRequest:
    """limit: how many; after: the id that the page before ended with; order: by creation."""

    limit: int = 20
    after: str | None = None
    order: Literal["asc", "desc"] = "desc"


@dataclass(frozen=True)
class RecordPage(Generic[Item]):
    records: Sequence[Item]
    has_more: bool


class Repository(Generic[AnyRecord]):
    """The rows of one table, by tenant. Subclasses name the table, the record, and the noun of its errors."""

    table: ClassVar[Table]
    noun: ClassVar[str]
    record: type[AnyRecord]

    def __init__(self, database: Database) -> None:
        self.database = database

    def get(self, tenant: Tenant, object_id: str, lock: bool = False) -> AnyRecord:
        """The record; lock: nobody changes it until the block of `write()` ends. Raises NotFound, also for another tenant's."""
        with self.database.write() if lock else self.database.read() as connection:
            row = tenant.row(connection, self.table, object_id, lock)
        if row is None:
            raise NotFound(f"there is no {self.noun} {object_id[:64]!r}")
        return self.record.of(row)

    def page(self, tenant: Tenant, request: PageRequest) -> RecordPage[AnyRecord]:
        with self.database.read() as connection:
            return self._page(connection, tenant.select(self.table), request)

    def _page(self, connection: Connection, rows: Select[Any], request: PageRequest) -> RecordPage[AnyRecord]:
        """Keyset pages: `id` is the key, so the cost of a page does not grow with its depth."""
        key, ascending = self.table.c.id, request.order == "asc"
        if request.after is not None:
            rows = rows.where(key > request.after if ascending else key < request.after)
        rows = rows.order_by(key if ascending else key.desc()).limit(request.limit + 1)
        found = connection.execute(rows).all()
        return RecordPage([self.record.of(row) for row in found[: request.limit]], len(found) > request.limit)
