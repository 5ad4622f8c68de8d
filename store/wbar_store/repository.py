"""The base of all repositories of tenants' objects: typed frozen records out, `get` and `page` by tenant.

A record is one row as plain typed values; its `to_api` is the only place where a row becomes an answer.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict
from sqlalchemy import JSON, Column, Connection, Row, Select, Table, Text, cast

from wbar.errors import FieldError, NotFound, ValidationFailed
from wbar_store import documents
from wbar_store.database import Database, Tenant, one_row
from wbar_store.ids import Kind, is_id


class Record(BaseModel):
    """One row. Its fields are columns by name; columns without a field are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        """Return the record of a row."""
        return cls.model_validate(dict(row._mapping))


Stored = tuple[Any, ...]
AnyRecord = TypeVar("AnyRecord", bound=Record)
Item = TypeVar("Item")
Listed = TypeVar("Listed", bound=Record)


@dataclass(frozen=True)
class PageRequest:
    """The page that is asked for.

    limit: how many records.
    after: the id that the page before ended with.
    order: by creation.
    """

    limit: int = 20
    after: str | None = None
    order: Literal["asc", "desc"] = "desc"


@dataclass(frozen=True)
class RecordPage(Generic[Item]):
    """One page of records, and whether there are more. last_id: where it ends, also where that row cannot be read."""

    records: Sequence[Item]
    has_more: bool
    last_id: str | None = None


def wrong_after(detail: str, parameter: str = "after") -> ValidationFailed:
    """Return the refusal of where a page is to begin."""
    return ValidationFailed(f"`{parameter}`: {detail}", [FieldError(pointer="", parameter=parameter, detail=detail)])


class Repository(Generic[AnyRecord]):
    """The rows of one table, by tenant.

    Subclasses name the table, the record, the kind of its ids and the noun of its errors.
    """

    table: ClassVar[Table]
    kind: ClassVar[Kind]
    noun: ClassVar[str]
    record: type[AnyRecord]

    def __init__(self, database: Database) -> None:
        self.database = database

    def get(self, tenant: Tenant, object_id: str, lock: bool = False) -> AnyRecord:
        """Return one record. Raises NotFound, also for another tenant's.

        lock: keep others from changing it until the block of `write()` ends.
        """
        with self.database.write() if lock else self.database.read() as connection:
            row = tenant.row(connection, self.table, object_id, lock)
        if row is None:
            raise NotFound(f"there is no {self.noun} {object_id[:64]!r}")
        return self.record.of(row)

    def exists(self, tenant: Tenant, object_id: str) -> bool:
        """Return whether the tenant has this object."""
        with self.database.read() as connection:
            return tenant.first(connection, one_row(self.table, self.table.c.id), object_id) is not None

    def stored(self, tenant: Tenant, object_id: str) -> Stored:
        """Return what the columns of one record hold, JSON as text: equal rows give equal tuples. Raises NotFound.

        It costs a third of `get`, and says whether what was made of the row before is still what it says.
        """
        with self.database.read() as connection:
            row = tenant.first(connection, self._select_stored, object_id)
        if row is None:
            raise NotFound(f"there is no {self.noun} {object_id[:64]!r}")
        return tuple(row)

    def of_stored(self, stored: Stored) -> AnyRecord:
        """Return the record of what `stored` returned."""
        values = {
            column.name: documents.load(value) if isinstance(column.type, JSON) and value is not None else value
            for column, value in zip(self._record_columns, stored, strict=True)
        }
        return self.record.model_validate(values)

    @cached_property
    def _record_columns(self) -> list[Column[Any]]:
        return [column for column in self.table.c if column.name in self.record.model_fields]

    @cached_property
    def _select_stored(self) -> Select[Any]:
        columns = [cast(column, Text) if isinstance(column.type, JSON) else column for column in self._record_columns]
        return one_row(self.table, *columns)

    def page(self, tenant: Tenant, request: PageRequest, statuses: Collection[str] = ()) -> RecordPage[AnyRecord]:
        """Return one page of the tenant's records. statuses: keep those in one of them; none: all."""
        rows = tenant.select(self.table)
        if statuses:
            rows = rows.where(self.table.c.status.in_(statuses))
        with self.database.read() as connection:
            return self._page(connection, rows, request)

    def _page(
        self, connection: Connection, rows: Select[Any], request: PageRequest, record: type[Listed] | None = None
    ) -> RecordPage[Any]:
        """Return a page by keyset: `id` is the key, so the cost of a page does not grow with its depth."""
        key, ascending = self.table.c.id, request.order == "asc"
        if request.after is not None:
            if not is_id(self.kind, request.after):
                raise wrong_after(f"{request.after!r} is no id of a {self.noun}: give a page's `last_id`")
            rows = rows.where(key > request.after if ascending else key < request.after)
        rows = rows.order_by(key if ascending else key.desc()).limit(request.limit + 1)
        return self._page_of(connection.execute(rows).all(), request, record)

    def _page_of(
        self, selected: Sequence[Any], request: PageRequest, record: type[Listed] | None = None
    ) -> RecordPage[Any]:
        """Return the page of rows of which there may be one more than it takes. record: default: the repository's."""
        shown = selected[: request.limit]
        records = documents.readable(shown, (record or self.record).of)
        return RecordPage(records, len(selected) > request.limit, shown[-1].id if shown else None)
