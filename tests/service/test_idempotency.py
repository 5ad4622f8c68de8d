"""A key is answered once: it is free again only where nothing was created."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from wbar.errors import IdempotentObjectDeleted
from wbar_service.idempotency import once
from wbar_store.blobs import Blobs
from wbar_store.database import Database, Tenant
from wbar_store.keys import KeyRecord
from wbar_store.notifier import Notifier
from wbar_store.repository import PageRequest
from wbar_store.store import Store

MINE = Tenant("default")


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[Store]:
    opened = Store(database, Blobs(f"file://{tmp_path / 'blobs'}", database), Notifier("memory://"))
    yield opened
    opened.notifier.close()


def test_a_request_that_comes_again_is_answered_again(store: Store) -> None:
    first = once(store, MINE, "key", "print", lambda: store.keys.create("a row").record)
    again = once(store, MINE, "key", "print", lambda: store.keys.create("another").record)
    assert (again.status_code, again.body) == (201, first.body)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert [record.name for record in store.keys.page(MINE, PageRequest()).records] == ["a row"]


def test_an_empty_key_is_no_key(store: Store) -> None:
    for _ in range(2):
        once(store, MINE, "", "print", lambda: store.keys.create("a row").record)
    assert len(store.keys.page(MINE, PageRequest()).records) == 2


def test_a_replay_of_what_was_deleted_since_says_so(store: Store) -> None:
    once(store, MINE, "key", "print", lambda: store.keys.create("a row").record)
    made = store.keys.page(MINE, PageRequest()).records[0]
    store.keys.revoke(MINE, made.id)
    with pytest.raises(IdempotentObjectDeleted, match=made.id):
        once(store, MINE, "key", "print", lambda: store.keys.create("another").record)
    assert store.keys.page(MINE, PageRequest()).records == []


def test_a_creation_that_failed_frees_the_key_and_leaves_nothing(store: Store) -> None:
    def fail() -> KeyRecord:
        store.keys.create("a row")
        raise RuntimeError("no")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            once(store, MINE, "key", "print", fail)
    assert store.keys.page(MINE, PageRequest()).records == []
