"""Polled reads in the event loop: they never wait for a lock, and a key that was revoked is refused a second later."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from sqlalchemy import delete
from sqlalchemy.exc import OperationalError

from tests.conftest import Service, wait_until
from wbar_service.reading import read
from wbar_store.database import Database
from wbar_store.keys import Keys
from wbar_store.migrate import upgrade
from wbar_store.tables import api_keys

KEY = "wbar_known"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file with one key, which nobody has open."""
    path = tmp_path / "wbar.db"
    database = Database(f"sqlite:///{path}")
    upgrade(database)
    Keys(database).create("tests", key=KEY)
    database.dispose()
    return path


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{path}")
    yield opened
    opened.dispose()


@pytest.fixture
def owner(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody who has the whole file for himself, as recovery after a crash has."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")
    yield connection
    connection.close()


def test_a_reader_does_not_wait_for_a_writer(database: Database, path: Path) -> None:
    writer = Database(f"sqlite:///{path}")
    with writer.write(), database.read_at_once() as possible:
        assert possible
        assert Keys(database).valid(KEY) is not None
    writer.dispose()


def test_where_a_reader_would_wait_it_is_refused(database: Database, owner: sqlite3.Connection) -> None:
    with pytest.raises(OperationalError, match="locked"), database.read_at_once():
        pass


def test_a_thread_waits_in_place_of_the_loop(database: Database, owner: sqlite3.Connection) -> None:
    happened = []

    async def ask() -> None:
        record = await read(database, lambda: Keys(database).valid(KEY))
        happened.append(f"answered for {record and record.tenant}")

    async def poll() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            happened.append("the loop goes on")
            owner.close()

    anyio.run(poll)
    assert happened == ["the loop goes on", "answered for default"]


def test_a_revoked_key_is_refused_soon(service: Service) -> None:
    key = Keys(service.database).create("to be revoked").key
    with service.http(key) as http:
        assert http.get("/v1/jobs").status_code == 200
        with service.database.write() as connection:
            connection.execute(delete(api_keys).where(api_keys.c.name == "to be revoked"))
        wait_until(lambda: http.get("/v1/jobs").status_code == 401, 2, "the refusal")
