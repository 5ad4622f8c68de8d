"""The query parameters every list takes."""

from typing import Annotated, Literal

from fastapi import Depends, Query

from wbar_store.lists import PageRequest


def _page(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=64, description="`last_id` of the page before.")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="By creation.")] = "desc",
) -> PageRequest:
    return PageRequest(limit, after, order)


Paging = Annotated[PageRequest, Depends(_page)]
