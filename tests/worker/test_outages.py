"""What may come back is tried again; what will not is raised at once."""

import errno
from collections.abc import Callable
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore, S3Store
from sqlalchemy import create_engine, insert
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from wbar_store.database import Database, now
from wbar_store.tables import workers
from wbar_worker.outages import is_outage, retry_while_unavailable


def error_of(ask: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011  # which one it is, is_outage tells
        ask()
    return raised.value


def test_a_store_that_is_away_is_an_outage(tmp_path: Path) -> None:
    nowhere = S3Store(
        "bucket", endpoint="http://127.0.0.1:9", client_options={"allow_http": True}, skip_signature=True,
        region="us-east-1", retry_config={"max_retries": 0},
    )  # fmt: skip
    assert is_outage(error_of(lambda: obstore.get(nowhere, "x")))
    assert is_outage(error_of(lambda: create_engine(f"sqlite:///{tmp_path}/missing/wbar.db").connect()))
    assert is_outage(OSError(errno.ENOSPC, "no space left on device"))
    assert is_outage(ConnectionResetError())


def test_a_pool_without_a_free_connection_is_an_outage(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'wbar.db'}", pool_size=1, max_overflow=0, pool_timeout=0.01)
    with engine.connect():
        error = error_of(engine.connect)
    engine.dispose()
    assert isinstance(error, NoConnectionFree)
    assert is_outage(error)


def test_what_another_try_does_not_change_is_none(database: Database, tmp_path: Path) -> None:
    def insert_twice() -> None:
        with database.write() as connection:
            for _ in range(2):
                row = {"name": "w", "queue": "train", "device": "cpu", "slots": 1}
                connection.execute(insert(workers).values(seen_at=now(), **row))

    assert not is_outage(error_of(insert_twice))
    assert not is_outage(error_of((tmp_path / "missing").read_bytes))
    assert not is_outage(error_of(lambda: obstore.get(LocalStore(tmp_path), "missing")))
    assert not is_outage(ValueError("no"))


def test_another_error_is_raised_at_once(tmp_path: Path) -> None:
    tries: list[int] = []

    def write() -> None:
        tries.append(1)
        (tmp_path / "missing").read_bytes()

    with pytest.raises(FileNotFoundError):
        retry_while_unavailable(write)
    assert len(tries) == 1
