"""What is not the fault of the request says so, and when to come back."""

import asyncio
from pathlib import Path

import httpx
from fastapi import FastAPI
from sqlalchemy import create_engine

from wbar_service import problems


def ask(app: FastAPI) -> httpx.Response:
    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://wbar") as client:
            return await client.get("/")

    return asyncio.run(get())


def test_a_database_without_a_free_connection_is_unavailable(tmp_path: Path) -> None:
    app = FastAPI()
    problems.install(app)
    engine = create_engine(f"sqlite:///{tmp_path / 'wbar.db'}", pool_size=1, max_overflow=0, pool_timeout=0.01)

    @app.get("/")
    async def use_two() -> None:
        with engine.connect(), engine.connect():
            raise AssertionError("there is only one")

    answer = ask(app)
    engine.dispose()
    assert (answer.status_code, answer.json()["code"], answer.headers["Retry-After"]) == (503, "unavailable", "5")
