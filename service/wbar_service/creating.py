"""POSTs that create: answered again, not done again, when they come twice with one Idempotency-Key."""

import hashlib
import json
from collections.abc import Callable
from typing import Annotated

from fastapi import Header, Response
from pydantic import BaseModel

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
    """A digest of what was asked for: values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def once(store: Store, tenant: Tenant, key: str | None, print_: str, create: Callable[[], BaseModel]) -> Response:
    """201 with what `create` returns; or, for a key seen before, the first answer with `Idempotent-Replayed: true`."""
    if key is None:
        return _answer(StoredAnswer(201, create().model_dump_json()))
    known = store.idempotency.begin(tenant, key, print_)
    if known is not None:
        return _answer(known, {"Idempotent-Replayed": "true"})
    try:
        first = StoredAnswer(201, create().model_dump_json())
    except BaseException:
        store.idempotency.forget(tenant, key)
        raise
    store.idempotency.finish(tenant, key, first)
    return _answer(first)


def _answer(answer: StoredAnswer, headers: dict[str, str] | None = None) -> Response:
    return Response(answer.body, answer.status, headers, media_type="application/json")
