"""An API key as the API sends it, the scopes that a key may have, and the link that opens the dashboard for one."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from wbar.request import RequestModel
from wbar.text import Name

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
MOST_DAYS = 3650


def _read_and_write() -> list[Scope]:
    return ["read", "write"]


class KeyRequest(RequestModel):
    """A request to create an API key of the same tenant."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "my laptop", "expires_in_days": 90}]})

    name: Name = Field(description="What the key is for.")
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3, fail_fast=True)] = Field(
        default_factory=_read_and_write,
        description="`read`: GET and HEAD. `write`: everything that creates, changes or deletes. `admin`: /v1/keys, and what "
        "changes /v1/webhooks. None of them contains another.",
    )
    expires_in_days: float | None = Field(
        None, gt=0, le=MOST_DAYS, allow_inf_nan=False, description="Default: it does not expire."
    )


class ApiKey(BaseModel):
    """An API key. `key` is the key itself: only in the answer to the request that created it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "key_0mk3q8v5zr5d2a7x9c4t",
                "object": "key",
                "name": "my laptop",
                "scopes": ["read", "write"],
                "hint": "wbar_4fK…",
                "key": None,
                "expires_at": "2027-02-19T09:00:00.000000Z",
                "last_used_at": None,
                "created_at": "2026-11-21T09:00:00.000000Z",
            }
        }
    )

    id: str
    object: Literal["key"] = "key"
    name: str
    scopes: list[Scope]
    hint: str = Field(description="How the key begins.")
    key: str | None = None
    expires_at: str | None
    last_used_at: str | None = Field(description="To about a minute.")
    created_at: str


class SignInLink(BaseModel):
    """A link that opens the dashboard once, as the key that asked for it."""

    object: Literal["sign_in_link"] = "sign_in_link"
    url: str = Field(description="Below the service's own address.")
    expires_in: int = Field(description="Seconds.")
