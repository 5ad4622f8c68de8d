"""The API in this process, on a database and a folder of its own: for limits that a shared service does not have."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from wbar_service.app import create_app
from wbar_service.settings import ServiceSettings
from wbar_store.database import Database
from wbar_store.keys import Keys
from wbar_store.migrate import upgrade


class App:
    """An API that is asked without a network."""

    def __init__(self, settings: ServiceSettings) -> None:
        database = Database(settings.database_url)
        upgrade(database)
        self.key = Keys(database).create("tests").key
        database.dispose()
        self.asgi = create_app(settings)

    def request(self, method: str, path: str, *, key: str | None = "", **options: Any) -> httpx.Response:
        """Ask as the default tenant, with another key, or with none."""
        chosen = self.key if key == "" else key
        headers = dict(options.pop("headers", {}))
        if chosen is not None:
            headers["Authorization"] = f"Bearer {chosen}"

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.asgi, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://wbar") as client:
                return await client.request(method, path, headers=headers, **options)

        return asyncio.run(ask())


@contextmanager
def app_in(folder: Path, **settings: Any) -> Iterator[App]:
    """An App with its database and blobs in `folder`, and a broker that nobody listens to."""
    values = {
        "database_url": f"sqlite:///{folder / 'wbar.db'}",
        "broker_url": "memory://",
        "blobs_url": f"file://{folder / 'blobs'}",
        "scratch": folder / "scratch",
    }
    app = App(ServiceSettings(**(values | settings)))
    yield app
    app.asgi.state.store.close()
