"""POSTs that create: answered again, not done again, when they come twice with one Idempotency-Key."""

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Header
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse

from wbar_store.database import Tenant
from wbar_store.store import Store

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=255,
        description="The same key and body within 24 hours get the first answer again.",
    ),
]


def fingerprint(*parts: Any) -> str:
    """A digest of what was asked for."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def once(
    store: Store, tenant: Tenant, key: str | None, print_: str, create: Callable[[], dict[str, Any]]
) -> JSONResponse:
    """201 with what `create` returns; or, for a key seen before, the first answer with `Idempotent-Replayed: true`."""
    if key is None:
        return JSONResponse(jsonable_encoder(create()), 201)
    known = store.idempotency.begin(tenant, key, print_)
    if known is not None:
        status, body = known
        return JSONResponse(body, status, {"Idempotent-Replayed": "true"})
    try:
        body = jsonable_encoder(create())
    except BaseException:
        store.idempotency.forget(tenant, key)
        raise
    store.idempotency.finish(tenant, key, 201, body)
    return JSONResponse(body, 201)
