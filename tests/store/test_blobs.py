"""Content keeps its name, is shared, and goes when no row refers to it: also when writers and deleters race."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, select, update

from tests.store.rows import insert_inputs, spec
from wbar_store.blobs import Blobs, Received
from wbar_store.database import Database, Tenant, now
from wbar_store.events import Events
from wbar_store.jobs import Jobs
from wbar_store.tables import REFERENCES, checkpoints, job_files, jobs, merge_inputs, merges, snapshots
from wbar_store.tables import blobs as rows


@pytest.fixture
def blobs(database: Database, tmp_path: Path) -> Blobs:
    return Blobs(f"file://{tmp_path / 'blobs'}", database)


def receive(blobs: Blobs, data: bytes) -> Received:
    upload = blobs.receive()
    upload.write(data)
    return upload.finish()


def refer(blobs: Blobs, received: Received, name: str) -> None:
    with blobs.keep(received) as sha256, blobs.references.database.write() as connection:
        values = {"id": name, "tenant": "t", "name": "n", "status": "ready", "bytes": 1, "given": {}, "attempts": 0}
        connection.execute(insert(checkpoints).values(sha256=sha256, content=sha256, created_at=now(), **values))


def forget(blobs: Blobs, name: str) -> None:
    with blobs.references.database.write() as connection:
        connection.execute(update(checkpoints).where(checkpoints.c.id == name).values(content=None))


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "blobs").rglob("*") if path.is_file())


def test_content_is_named_by_its_digest_and_read_in_ranges(blobs: Blobs, tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    received = receive(blobs, data)
    assert received.sha256 == hashlib.sha256(data).hexdigest()
    refer(blobs, received, "a")
    assert files(tmp_path) == [received.sha256]
    assert b"".join(blobs.chunks(received.sha256, 0, len(data))) == data
    assert b"".join(blobs.chunks(received.sha256, 300, 70_000)) == data[300:70_000]
    assert b"".join(blobs.chunks(received.sha256, 5, 5)) == b""
    blobs.fetch(received.sha256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_equal_content_is_shared_and_deleted_with_its_last_reference(blobs: Blobs, tmp_path: Path) -> None:
    first, second = receive(blobs, b"same"), receive(blobs, b"same")
    refer(blobs, first, "a")
    refer(blobs, second, "b")
    assert files(tmp_path) == [first.sha256]
    forget(blobs, "a")
    assert blobs.collect([first.sha256]) == 0
    forget(blobs, "b")
    assert blobs.collect([first.sha256]) == 1
    assert files(tmp_path) == []
    with blobs.references.database.read() as connection:
        assert connection.execute(select(rows)).first() is None


def test_an_aborted_upload_leaves_nothing(blobs: Blobs, tmp_path: Path) -> None:
    upload = blobs.receive()
    upload.write(b"x" * 3_000_000)
    upload.abort()
    assert files(tmp_path) == []


def test_held_content_is_not_collected(blobs: Blobs, tmp_path: Path) -> None:
    received = receive(blobs, b"held")
    with blobs.keep(received):
        assert blobs.collect() == 0
        assert files(tmp_path) == [received.sha256]
    assert blobs.collect() == 1


def test_a_version_that_does_not_know_a_reference_does_not_mark_its_blob(blobs: Blobs, tmp_path: Path) -> None:
    """Its statement marks what it takes for unused; the database leaves out what a row names, and only that."""
    named, unused = receive(blobs, b"named"), receive(blobs, b"unused")
    refer(blobs, named, "a")
    with blobs.keep(unused):
        pass
    with blobs.references.database.write() as connection:
        connection.execute(update(rows).values(deleting=True))
    assert blobs.references.marked() == [unused.sha256]
    assert blobs.finish_deletions() == 1
    assert files(tmp_path) == [named.sha256]
    forget(blobs, "a")
    assert blobs.collect() == 1


def test_every_reference_is_guarded_by_the_database(blobs: Blobs) -> None:
    insert_inputs(blobs.references.database)
    Jobs(blobs.references.database, Events(blobs.references.database)).create(Tenant("default"), spec(), None, {})
    with blobs.references.database.write() as connection:
        job = connection.execute(select(jobs.c.id)).scalar_one()
        connection.execute(
            insert(snapshots).values(
                id="snap_1", job=job, n=1, step=1, metrics={}, bytes=1, sha256="0", created_at=now()
            )
        )
        connection.execute(insert(job_files).values(job=job, name="onnx", sha256="0"))
        merge = {"id": "merge_1", "tenant": "default", "status": "succeeded", "spec": {}, "fraction": 1.0, "bytes": 1}
        connection.execute(insert(merges).values(**merge, attempts=1, created_at=now()))
        connection.execute(insert(merge_inputs).values(merge="merge_1", sha256="0"))
    for n, column in enumerate(REFERENCES):
        with blobs.references.database.write() as connection:
            connection.execute(update(column.table).values({column.name: f"{n:064}"}))
            values = {"bytes": 1, "holds": 0, "touched_at": 0.0, "deleting": False}
            connection.execute(insert(rows).values(sha256=f"{n:064}", **values))
    with blobs.references.database.write() as connection:
        connection.execute(update(rows).values(deleting=True))
    assert blobs.references.marked() == []


def test_a_blob_that_cannot_be_deleted_keeps_no_other_from_it(
    blobs: Blobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    received = [receive(blobs, data) for data in (b"1", b"2", b"3")]
    for number, one in enumerate(received):
        refer(blobs, one, str(number))
        forget(blobs, str(number))
    stuck = tmp_path / "blobs" / blobs.path(received[1].sha256)
    stuck.unlink()
    stuck.mkdir()  # a folder is not deleted like a file
    assert blobs.collect() == 2
    assert received[1].sha256 in caplog.text
    refer(blobs, receive(blobs, b"1"), "again")
    stuck.rmdir()
    assert blobs.collect() == 1, "it is tried again"


def test_content_that_could_not_be_kept_leaves_nothing(blobs: Blobs, tmp_path: Path) -> None:
    received = receive(blobs, b"lost")
    target = tmp_path / "blobs" / blobs.path(received.sha256)
    target.mkdir(parents=True)
    with pytest.raises(Exception, match="directory"), blobs.keep(received):
        raise AssertionError("it has no place")
    assert files(tmp_path) == []
    target.rmdir()
    refer(blobs, receive(blobs, b"lost"), "a")


def test_a_deletion_that_died_halfway_is_finished_before_the_content_comes_back(blobs: Blobs, tmp_path: Path) -> None:
    received = receive(blobs, b"again")
    refer(blobs, received, "a")
    forget(blobs, "a")
    with blobs.references.database.write() as connection:
        connection.execute(update(rows).values(deleting=True))
    refer(blobs, receive(blobs, b"again"), "b")
    assert files(tmp_path) == [received.sha256]
    assert b"".join(blobs.chunks(received.sha256, 0, 5)) == b"again"


def test_a_slow_finisher_does_not_delete_what_came_back(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    received = receive(blobs, b"back again")
    refer(blobs, received, "a")
    forget(blobs, "a")
    with blobs.references.database.write() as connection:
        connection.execute(update(rows).values(deleting=True))
    # The list of marked blobs is read; before the first is deleted, another finisher and a new upload overtake.
    original = blobs.references.database.write
    calls = iter([True])

    @contextmanager
    def delayed(durable: bool = True) -> Iterator[object]:
        if next(calls, False):
            monkeypatch.setattr(blobs.references.database, "write", original)
            blobs.finish_deletions()
            refer(blobs, receive(blobs, b"back again"), "b")
        with original(durable) as connection:
            yield connection

    monkeypatch.setattr(blobs.references.database, "write", delayed)
    blobs.finish_deletions()
    assert b"".join(blobs.chunks(received.sha256, 0, 10)) == b"back again"


def test_writers_and_deleters_of_the_same_content_never_lose_it(blobs: Blobs) -> None:
    stop = threading.Event()
    failures: list[str] = []

    def write(worker: int) -> None:
        for turn in range(12):
            name = f"{worker}-{turn}"
            refer(blobs, receive(blobs, b"contended"), name)
            if b"".join(blobs.chunks(hashlib.sha256(b"contended").hexdigest(), 0, 9)) != b"contended":
                failures.append(name)
            forget(blobs, name)

    def delete() -> None:
        while not stop.is_set():
            blobs.collect()

    writers = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    deleter = threading.Thread(target=delete)
    deleter.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    deleter.join()
    assert failures == []


def test_the_half_of_an_upload_whose_process_was_killed_is_swept(blobs: Blobs, tmp_path: Path) -> None:
    upload = blobs.receive()
    upload.write(b"x" * 9_000_000)  # more than the writer buffers
    assert files(tmp_path) != [], "there is a half on the disk, which nobody will finish"
    assert blobs.sweep_temporaries() == 0, "it may still grow"
    assert blobs.sweep_temporaries(older_than=timedelta(seconds=-5)) == 1
    assert files(tmp_path) == []
    upload.abort()


def test_what_died_halfway_in_is_swept(blobs: Blobs, tmp_path: Path) -> None:
    receive(blobs, b"never named")
    assert blobs.sweep_temporaries() == 0
    assert blobs.sweep_temporaries(older_than=timedelta(seconds=-5)) == 1
    assert files(tmp_path) == []


def test_files_that_no_row_is_about_are_found_and_deleted(blobs: Blobs, tmp_path: Path) -> None:
    kept, free = receive(blobs, b"kept"), receive(blobs, b"free")
    refer(blobs, kept, "a")
    refer(blobs, free, "b")
    forget(blobs, "b")
    stray = tmp_path / "blobs" / Blobs.path("ab" * 32)
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"12345")
    assert blobs.garbage().strays == {}, "it may just be being stored"
    now = timedelta(seconds=-5)
    found = blobs.garbage(now)
    assert (found.unreferenced, found.strays) == ({free.sha256: 4}, {"ab" * 32: 5})
    assert stray.exists()
    assert blobs.collect_garbage(now) == found
    assert files(tmp_path) == [kept.sha256]


def test_garbage_is_collected_beside_writers_who_never_lose_a_byte(blobs: Blobs) -> None:
    """Content that comes and goes and comes again, with the collector always at work."""
    stop, failures = threading.Event(), list[BaseException]()

    def write(number: int) -> None:
        try:
            for turn in range(40):
                received = receive(blobs, b"shared %d" % (turn % 3))
                refer(blobs, received, f"{number}-{turn}")
                assert b"".join(blobs.chunks(received.sha256, 0, 8)) == b"shared %d" % (turn % 3)
                forget(blobs, f"{number}-{turn}")
        except BaseException as error:
            failures.append(error)

    def collect() -> None:
        try:
            while not stop.is_set():
                blobs.collect_garbage(timedelta(seconds=-5))
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    collector = threading.Thread(target=collect)
    for thread in (*writers, collector):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    collector.join()
    assert failures == []
