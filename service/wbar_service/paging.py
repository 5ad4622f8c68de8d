"""The query parameters that every list takes, and the page that it answers with."""

from collections.abc import Callable
from typing import Annotated, Literal, Protocol, TypeVar

from fastapi import Query
from pydantic import Field

from wbar.lists import Page
from wbar_service.query_parameters import DIGITS
from wbar_store.documents import readable
from wbar_store.ids import Kind
from wbar_store.repository import PageRequest, RecordPage

ANY_OF = "Any of these; may be given several times."  # of a filter by status
PageSize = Annotated[int, Field(ge=1, le=100), DIGITS]


class _Identified(Protocol):
    @property
    def id(self) -> str | None: ...


Stored = TypeVar("Stored")
Sent = TypeVar("Sent", bound=_Identified)


def paged_by(kind: Kind) -> Callable[..., PageRequest]:
    """Return the dependency that reads the page a client asks for. kind: of the ids that `after` may be."""
    pattern = {"pattern": f"^{kind}_[0-9a-z]+$"}  # for the document; the repository says in words what is wrong

    def page(
        limit: Annotated[PageSize, Query()] = 20,
        after: Annotated[
            str | None, Query(max_length=64, description="`last_id` of the page before.", json_schema_extra=pattern)
        ] = None,
        order: Annotated[Literal["asc", "desc"], Query(description="By creation.")] = "desc",
    ) -> PageRequest:
        return PageRequest(limit, after, order)

    return page


# The annotation is quoted: pydantic would try to build a model for the protocol.
def page_of(page: RecordPage[Stored], to_api: Callable[[Stored], Sent]) -> "Page[Sent]":
    """Return a page of records as the API sends it."""
    data = readable(page.records, to_api)
    return Page(
        data=data,
        has_more=page.has_more,
        first_id=data[0].id if data else None,
        last_id=page.last_id or (data[-1].id if data else None),
    )
