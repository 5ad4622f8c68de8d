"""A key is answered once: it is free again only where nothing was created."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Service
from tests.material import write_start
from wbar.errors import IdempotentObjectDeleted
from wbar.job_request import JobRequest
from wbar_service.idempotency import once
from wbar_service.jobs.creating import digest_of
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


@pytest.mark.long
def test_fifty_identical_posts_make_one_object_though_the_api_dies(breakable: Service, tmp_path: Path) -> None:
    """Every client sends its request again until it is answered; the API is killed three times while they do."""
    breakable.start("api")
    content = write_start(tmp_path).read_bytes()
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/datasets", {"json": {"source": "builtin:digits"}}),
        ("/v1/checkpoints?name=same", {"content": content}),
    ]
    for path, body in requests:
        answers: list[httpx.Response] = []
        begun = threading.Semaphore(0)
        clients = [
            threading.Thread(target=_post_until_answered, args=(breakable, path, body, begun, answers))
            for _ in range(50)
        ]
        for client in clients:
            client.start()
        for _ in range(3):
            for _ in range(12):  # so many requests are on their way, some of them at every point of the creation
                begun.acquire(timeout=30)
            breakable.signal("api", signal.SIGKILL)
            breakable.start("api")
        for client in clients:
            client.join(60)
        assert [answer.status_code for answer in answers] == [201] * 50
        assert len({answer.json()["id"] for answer in answers}) == 1
        with breakable.http() as http:
            assert len(http.get(path.split("?")[0]).json()["data"]) == 1


def _post_until_answered(
    service: Service, path: str, body: dict[str, Any], begun: threading.Semaphore, answers: list[httpx.Response]
) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        begun.release()
        with service.http() as http, suppress(httpx.TransportError):
            answer = http.post(path, headers={"Idempotency-Key": f"the same for {path}"}, **body)
            if answer.status_code < 500:
                answers.append(answer)
                return
        time.sleep(0.02)  # as a client waits before it tries again


def test_a_request_of_the_version_before_that_comes_again_has_its_digest() -> None:
    """What 0.5.0 stored for these requests: a retry may come after the upgrade, or at an API of either version."""
    sent: list[tuple[dict[str, Any], str]] = [
        (
            {"checkpoint": "ckpt_1", "dataset": "ds_1"},
            "828d415a2dea59423b4be51b888962088461a4328728a1788860b696e73b1da9",
        ),
        (
            {
                "checkpoint": "ckpt_1",
                "dataset": "ds_1",
                "method": {"type": "soup", "checkpoints": ["ckpt_1", "ckpt_2"]},
            },
            "5abd6c3e1d5f173139af95fd53ae32c123a0fa8d8094aa594bbcdc26f20408b1",
        ),
    ]
    for body, digest in sent:
        assert digest_of(JobRequest.model_validate(body)) == digest
        assert digest_of(JobRequest.model_validate(body | {"expires_after": 60})) != digest
