"""POST requests that create: one that comes twice with one Idempotency-Key is answered again and not done again."""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Protocol

from fastapi import Header, Response
from pydantic import BaseModel

from wbar.errors import IdempotentObjectDeleted
from wbar_store.blobs import Received
from wbar_store.database import Tenant
from wbar_store.idempotency import FirstAnswer
from wbar_store.store import Store

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=255,
        description="The same key and body within 24 hours get the first answer again.",
    ),
]


def fingerprint(*parts: object, **options: object) -> str:
    """Return a digest of what was asked for: values that JSON can hold.

    options: those that are None are left out, so that a new option does not change the digest of requests without it.
    """
    asked = {name: value for name, value in options.items() if value is not None}
    if asked:
        parts = (*parts, asked)
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

    create: writes the row; the key and the answer are written in the same transaction, so that there is never one without
        the other, also where the process is killed before it has answered.
    kept: content that the row refers to.

    A worker is notified of the object once it is committed. Raises IdempotencyKeyReused, IdempotentObjectDeleted.
    """

    def first() -> FirstAnswer:
        created = create()
        return FirstAnswer(created.id, created.to_api().model_dump_json())

    with nullcontext() if kept is None else store.blobs.keep(kept):
        if key:  # an empty header is no key
            answer, replayed = store.idempotency.once(tenant, key, print_, first)
        else:
            with store.database.write():
                answer, replayed = first(), False
    if not replayed:
        store.notify(answer.object)
    elif not store.exists(tenant, answer.object):
        raise IdempotentObjectDeleted(
            f"this request made {answer.object}, which was deleted since: send another Idempotency-Key to make it again"
        )
    return Response(
        answer.body, 201, {"Idempotent-Replayed": "true"} if replayed else None, media_type="application/json"
    )
