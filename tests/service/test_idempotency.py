"""A key is answered once: it is free again only where nothing was created."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from wbar.jobs import Deleted
from wbar_service.idempotency import once
from wbar_store.blobs import Blobs
from wbar_store.database import Database, Tenant
from wbar_store.notifier import Notifier
from wbar_store.store import Store

MINE = Tenant("default")


class Odd:
    """A record of which no worker can be notified."""

    id = "odd_1"

    def to_api(self) -> Deleted:
        return Deleted(id=self.id, object="job")


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[Store]:
    opened = Store(database, Blobs(f"file://{tmp_path / 'blobs'}", database), Notifier("memory://"))
    yield opened
    opened.notifier.close()


def test_a_failure_after_the_creation_does_not_free_the_key(store: Store) -> None:
    created: list[str] = []

    def create() -> Odd:
        created.append(store.keys.create("a row"))
        return Odd()

    with pytest.raises(ValueError, match="names no job"):
        once(store, MINE, "key", "print", create)
    again = once(store, MINE, "key", "print", create)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(created) == 1


def test_a_creation_that_failed_frees_the_key_and_leaves_nothing(store: Store) -> None:
    written: list[str] = []

    def fail() -> Odd:
        written.append(store.keys.create("a row"))
        raise RuntimeError("no")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            once(store, MINE, "key", "print", fail)
    assert [store.keys.tenant_of(key) for key in written] == [None, None]
