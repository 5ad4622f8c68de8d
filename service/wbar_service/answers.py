"""Answers from rows: they were validated when they were written, and are not validated again on their way out.

That the rows fit the schema is a matter for the tests, which ask every route of a real service. What clients poll is made
once for each content of its row: a row that says what it said before is answered with the bytes that were made of it then.
"""

from functools import lru_cache
from typing import Any

from fastapi import Response
from pydantic_core import to_json

from wbar_service.reading import read
from wbar_store.database import Tenant
from wbar_store.repository import Repository, Stored


def answer(body: Any, status: int = 200) -> Response:
    """Return a JSON answer. A number that is not finite becomes null: JSON has no word for it."""
    return Response(to_json(body, inf_nan_mode="null"), status, media_type="application/json")


async def polled(repository: Repository[Any], tenant: Tenant, object_id: str) -> Response:
    """Answer with one of the tenant's objects as it is now. Raises NotFound."""
    return made_of(repository, await stored_now(repository, tenant, object_id))


async def stored_now(repository: Repository[Any], tenant: Tenant, object_id: str) -> Stored:
    """Return what the row of one of the tenant's objects holds now. Raises NotFound."""
    return await read(repository.database, lambda: repository.stored(tenant, object_id))


def made_of(repository: Repository[Any], stored: Stored) -> Response:
    """Answer with the object that the row holds."""
    return Response(_made_of(repository, stored), media_type="application/json")


@lru_cache(maxsize=256)
def _made_of(repository: Repository[Any], stored: Stored) -> bytes:
    return to_json(repository.of_stored(stored).to_api(), inf_nan_mode="null")
