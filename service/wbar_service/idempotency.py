"""POST requests that create: one that comes twice with one Idempotency-Key is answered again and not done again."""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Protocol

from fastapi import Header, Response
from pydantic import BaseModel

from wbar_store.blobs import Received
from wbar_store.database import Tenant
from wbar_store.idempotency import StoredAnswer
from wbar_store.store import Store

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=255,
        description="The same key and body within 24 hours get the first answer again.",
    ),
]


def fingerprint(*parts: object) -> str:
    """Return a digest of what was asked for: values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class Created(Protocol):
    """A record of what was created."""

    @property
    def id(self) -> str:
        """The id that workers are notified of."""

    def to_api(self) -> BaseModel:
        """Return it as the API sends it."""


def once(
    store: Store,
    tenant: Tenant,
    key: str | None,
    print_: str,
    create: Callable[[], Created],
    kept: Received | None = None,
) -> Response:
    """Return 201 with what `create` makes; for a key that was used before, the first answer with `Idempotent-Replayed: true`.

    create: writes the row; the answer is stored in the same transaction, so that there is never one without the other.
    kept: content that the row refers to.

    A worker is notified of the object once it is committed.
    """
    earlier = None if key is None else store.idempotency.begin(tenant, key, print_)
    if earlier is not None:
        return _answer(earlier, {"Idempotent-Replayed": "true"})
    try:
        with nullcontext() if kept is None else store.blobs.keep(kept), store.database.write():
            created = create()
            first = StoredAnswer(201, created.to_api().model_dump_json())
            if key is not None:
                store.idempotency.finish(tenant, key, first)
    except BaseException:
        if key is not None:
            store.idempotency.forget(tenant, key)  # which leaves an answer that was committed
        raise
    store.notify(created.id)
    return _answer(first)


def _answer(answer: StoredAnswer, headers: dict[str, str] | None = None) -> Response:
    return Response(answer.body, answer.status, headers, media_type="application/json")
