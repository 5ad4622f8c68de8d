# Derived from wbar/client/_async/resource.py by `make client` (tools/derive_client.py): edit that one.
"""What the resources of the client have in common: typed answers, creation that may be repeated, pages, waiting."""

import uuid
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from wbar.checkpoints import Checkpoint
from wbar.client.problems import rejection
from wbar.datasets import Dataset
from wbar.lists import Page

if TYPE_CHECKING:
    from wbar.client._sync.client import Client

Model = TypeVar("Model", bound=BaseModel)
Uploaded = TypeVar("Uploaded", Checkpoint, Dataset)
POLL = 0.1  # seconds between two looks at an upload that is being validated
PAGE = 100  # objects, the most that a page may have


class Resource:
    """The base of the client's resources."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def _get(self, path: str, model: type[Model], **params: Any) -> Model:
        answer = self._client.request("GET", path, params=given(params))
        return model.model_validate(answer.json())

    def _create(self, path: str, model: type[Model], body: Any, key: str | None, **params: Any) -> Model:
        """POST a body with an idempotency key, the given one or one of its own, so that it may be sent again."""
        headers = {"Idempotency-Key": key or new_key()}
        answer = self._client.request("POST", path, params=given(params), json=body, headers=headers)
        return model.model_validate(answer.json())

    def _pages(self, path: str, model: type[Page[Model]], **params: Any) -> Iterator[Model]:
        """Yield the objects of every page, as they are wanted."""
        after: str | None = None
        while True:
            page = self._get(path, model, limit=PAGE, after=after, **params)
            yield from page.data
            if not page.has_more:
                return
            after = page.last_id

    def _wait_ready(self, get: Callable[[], Uploaded], timeout: float) -> Uploaded:
        deadline = monotonic() + timeout
        while True:
            uploaded = get()
            if uploaded.status == "ready":
                return uploaded
            if uploaded.error is not None:
                raise rejection(uploaded.error.code, uploaded.error.message)
            if monotonic() > deadline:
                raise TimeoutError(f"{uploaded.id} is still {uploaded.status} after {timeout:g} s")
            sleep(POLL)


def new_key() -> str:
    """Return an idempotency key for one request and its repetitions."""
    return uuid.uuid4().hex


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
