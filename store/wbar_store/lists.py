"""Keyset pages: `id` is the key, so the cost of a page does not grow with its depth."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, Table


@dataclass(frozen=True)
class PageRequest:
    limit: int = 20
    after: str | None = None
    order: Literal["asc", "desc"] = "desc"


def page(
    connection: Connection, table: Table, rows: Select[Any], request: PageRequest, sent: Callable[[Row[Any]], Any]
) -> dict[str, Any]:
    """One page of `rows` of `table`, each made into what is sent by `sent`."""
    ascending = request.order == "asc"
    if request.after is not None:
        rows = rows.where(table.c.id > request.after if ascending else table.c.id < request.after)
    rows = rows.order_by(table.c.id if ascending else table.c.id.desc()).limit(request.limit + 1)
    found = list(connection.execute(rows))
    return as_page([sent(row) for row in found[: request.limit]], len(found) > request.limit)


def as_page(data: list[Any], has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": data,
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
