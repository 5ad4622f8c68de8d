"""What a child writes arrives whole under its digest, or leaves nothing."""

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch

from tests.material import start_state
from tests.worker.entries import ANSWER_BY_HALF, GIVE, LINE
from wbar.errors import ContentTooLarge
from wbar_averaging import write_safetensors
from wbar_store.blobs import CHUNK
from wbar_store.checkpoints import CheckpointRecord, GivenNetwork
from wbar_store.database import Tenant
from wbar_store.migrate import upgrade
from wbar_store.store import Store
from wbar_training.messages import Crashed
from wbar_worker import ingest, processes
from wbar_worker.child_content import ChildContent
from wbar_worker.children import VERDICTS, Verdict
from wbar_worker.ingest import Ingester
from wbar_worker.settings import WorkerSettings

MINE = Tenant("default")


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    return WorkerSettings(
        database_url=f"sqlite:///{tmp_path / 'wbar.db'}", broker_url="memory://", blobs_url=f"file://{tmp_path / 'blobs'}",
        scratch=tmp_path / "scratch",
    )  # fmt: skip


@pytest.fixture
def store(settings: WorkerSettings) -> Iterator[Store]:
    opened = Store.open(settings)
    upgrade(opened.database)
    yield opened
    opened.close()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def answer(content: ChildContent, count: int, answers: bool = True) -> Verdict | None:
    """Return what the child says; None where it ends without."""
    child = processes.start(GIVE, (count, content.child_end, answers))
    try:
        while True:
            if content in wait([child.pipe, content]):
                content.take()
            else:
                return child.receive(VERDICTS)
    except EOFError:
        return None
    finally:
        child.end()


@pytest.mark.parametrize("count", [0, 1, 3, 41])
def test_what_a_child_writes_is_stored_under_its_digest(store: Store, tmp_path: Path, count: int) -> None:
    with ChildContent(store.blobs, 41 * len(LINE)) as content:
        assert answer(content, count) == Crashed(why="that was all")
        received = content.finish()
        assert (received.sha256, received.bytes) == (hashlib.sha256(LINE * count).hexdigest(), len(LINE) * count)
        with store.blobs.keep(received) as sha256:
            assert files(tmp_path / "blobs") == [sha256]
            assert b"".join(store.blobs.chunks(sha256, 0, received.bytes)) == LINE * count


def test_a_child_that_is_killed_in_the_middle_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with ChildContent(store.blobs, CHUNK) as content:
        assert answer(content, 1, answers=False) is None
    assert files(tmp_path / "blobs") == []


def test_an_end_that_stays_open_is_not_waited_for(store: Store, tmp_path: Path) -> None:
    """Another process may hold the child's end, which nothing is to come from once the child has ended."""
    with ChildContent(store.blobs, CHUNK) as content:
        held = os.dup(content.child_end.fileno())
        try:
            assert answer(content, 3) == Crashed(why="that was all")
            received = content.finish()
            with store.blobs.keep(received):
                assert received.bytes == 3 * len(LINE)
        finally:
            os.close(held)


def test_the_limit_holds_in_the_last_bytes(store: Store, tmp_path: Path) -> None:
    def whole(content: ChildContent) -> None:
        answer(content, 3)
        content.finish()

    with (
        ChildContent(store.blobs, 2 * len(LINE)) as content,
        pytest.raises(ContentTooLarge, match="larger than an upload"),
    ):
        whole(content)
    assert files(tmp_path / "blobs") == []


def test_half_an_answer_is_not_waited_for_beyond_the_limit(
    store: Store, settings: WorkerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "VALIDATE_CHECKPOINT", ANSWER_BY_HALF)
    write_safetensors(tmp_path / "net", start_state(), {})
    record = uploaded(store, tmp_path / "net")
    Ingester(store, settings.model_copy(update={"ingest_seconds": 1.0})).run(record.id)
    left = store.checkpoints.get(MINE, record.id)
    assert left.status != "ready"


def test_a_child_that_writes_on_and_on_is_stopped(store: Store, tmp_path: Path) -> None:
    with ChildContent(store.blobs, 2 * CHUNK) as content, pytest.raises(ContentTooLarge, match="larger than an upload"):
        answer(content, 1_000_000)
    assert files(tmp_path / "blobs") == []


def uploaded(store: Store, path: Path) -> CheckpointRecord:
    received = store.blobs.put_file(path)
    with store.blobs.keep(received):
        return store.checkpoints.create(MINE, "n", received, GivenNetwork())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pytorch_file_is_stored_as_safetensors(
    store: Store, settings: WorkerSettings, tmp_path: Path, zipped: bool
) -> None:
    state = start_state()
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    write_safetensors(tmp_path / "c.safetensors", state, {})
    stored = hashlib.sha256((tmp_path / "c.safetensors").read_bytes()).hexdigest()
    upload = uploaded(store, tmp_path / "c.pth")
    Ingester(store, settings).run(upload.id)
    ready = store.checkpoints.get(MINE, upload.id)
    assert (ready.status, ready.weights) == ("ready", stored)
    assert files(tmp_path / "blobs") == sorted([upload.sha256, stored])
    assert files(tmp_path / "scratch") == []
    inodes = [path.stat().st_ino for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert len(set(inodes)) == 2


def test_a_checkpoint_that_is_deleted_while_it_is_read_leaves_nothing(
    store: Store, settings: WorkerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(start_state(), tmp_path / "c.pth")
    upload = uploaded(store, tmp_path / "c.pth")
    take = ChildContent.take

    def deleted(content: ChildContent) -> bool:
        more = take(content)
        if store.checkpoints.exists(MINE, upload.id):
            store.blobs.collect(store.checkpoints.remove(MINE, upload.id))
        return more

    monkeypatch.setattr(ChildContent, "take", deleted)
    monkeypatch.setattr(ingest, "RENEW_SECONDS", 0.0)
    Ingester(store, settings).run(upload.id)
    store.blobs.collect()
    assert files(tmp_path / "blobs") == []


def killed_while_it_stores(settings: WorkerSettings, upload: str) -> None:
    """Run in a process of its own: an ingest worker that is killed with half of the content stored."""
    store = Store.open(settings)

    def die(content: ChildContent) -> None:
        content._buffers[0][:] = bytes(CHUNK)
        content._filled = CHUNK
        content._store()
        os.kill(os.getpid(), signal.SIGKILL)

    ChildContent.take = die  # type: ignore[assignment,method-assign]
    Ingester(store, settings).run(upload)


@pytest.mark.long
def test_a_worker_that_is_killed_while_it_stores_leaves_no_half_of_a_blob(
    store: Store, settings: WorkerSettings, tmp_path: Path
) -> None:
    torch.save(start_state(), tmp_path / "c.pth")
    upload = uploaded(store, tmp_path / "c.pth")
    process = multiprocessing.get_context("spawn").Process(target=killed_while_it_stores, args=(settings, upload.id))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert files(tmp_path / "blobs" / "sha256") == [upload.sha256]
    assert len(files(tmp_path / "blobs" / "tmp")) == 1
    half = store.checkpoints.get(MINE, upload.id)
    assert half.status == "processing"
    store.checkpoints.release(half.claim)  # as its lease would end
    Ingester(store, settings).run(upload.id)
    ready = store.checkpoints.get(MINE, upload.id)
    assert (ready.status, ready.weights in files(tmp_path / "blobs" / "sha256")) == ("ready", True)
    assert store.blobs.sweep_temporaries(older_than=timedelta(seconds=-5)) == 1
    assert files(tmp_path / "blobs" / "tmp") == []
