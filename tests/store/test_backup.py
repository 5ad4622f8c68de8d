"""A backup is what the folder was at one moment, whatever happened meanwhile; a damaged one restores nothing."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import func, select

from wbar_store.backup import BackupFailed, back_up, restore
from wbar_store.blobs import Blobs
from wbar_store.checkpoints import GivenNetwork
from wbar_store.database import Database, Tenant
from wbar_store.migrate import upgrade
from wbar_store.notifier import Notifier
from wbar_store.store import Store
from wbar_store.tables import blobs, checkpoints

MINE = Tenant("default")


def opened(data: Path) -> Store:
    data.mkdir(parents=True, exist_ok=True)
    database = Database(f"sqlite:///{data / 'wbar.db'}")
    upgrade(database)
    return Store(database, Blobs(f"file://{data / 'blobs'}", database), Notifier("memory://"))


def upload(store: Store, content: bytes) -> str:
    started = store.blobs.receive()
    started.write(content)
    received = started.finish()
    with store.blobs.keep(received):
        return store.checkpoints.create(MINE, "x", received, GivenNetwork()).id


def whole(data: Path) -> int:
    """How many blobs the rows name; every one of them is there, and nothing else."""
    store = opened(data)
    try:
        with store.database.read() as connection:
            named = set(connection.execute(select(checkpoints.c.content)).scalars())
            assert connection.execute(select(func.count()).where(blobs.c.holds != 0)).scalar_one() == 0
        assert {path.name for path in (data / "blobs" / "sha256").glob("*/*")} == named
        assert not store.blobs.garbage().strays
        return len(named)
    finally:
        store.close()


def test_a_folder_in_use_is_backed_up_as_it_was_at_one_moment(tmp_path: Path) -> None:
    store, stop = opened(tmp_path / "data"), threading.Event()
    for n in range(20):
        upload(store, b"first %d" % n)
    failures: list[Exception] = []

    def work(thread: int) -> None:
        n = 0
        try:
            while not stop.is_set():
                made = upload(store, b"%d %d" % (thread, n))
                if n % 2:
                    store.blobs.collect(store.checkpoints.remove(MINE, made))
                n += 1
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(5):
            made = back_up(tmp_path / "data", tmp_path / f"backup{round_}")
            assert made.blobs >= 20
            assert restore(tmp_path / f"backup{round_}", tmp_path / f"again{round_}") == made
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        store.close()
    assert failures == []
    for round_ in range(5):
        assert whole(tmp_path / f"again{round_}") >= 20


def test_a_backup_that_is_damaged_restores_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path / "data")
    upload(store, b"content")
    store.close()
    for number, damage in enumerate(("blob", "database", "manifest", "missing", "no database")):
        source, data = tmp_path / f"backup{number}", tmp_path / f"again{number}"
        back_up(tmp_path / "data", source)
        blob = next((source / "blobs" / "sha256").glob("*/*"))
        if damage == "blob":
            blob.unlink()  # it is a link to the original
            blob.write_bytes(b"Content")
        elif damage == "database":
            (source / "wbar.db").write_bytes((source / "wbar.db").read_bytes()[:-1] + b"x")
        elif damage == "manifest":
            (source / "manifest.json").write_text("{}")
        elif damage == "missing":
            blob.unlink()
        else:
            (source / "wbar.db").unlink()
        with pytest.raises(BackupFailed):
            restore(source, data)
        assert not data.exists()


def test_folders_that_are_there_are_not_overwritten(tmp_path: Path) -> None:
    store = opened(tmp_path / "data")
    upload(store, b"content")
    store.close()
    back_up(tmp_path / "data", tmp_path / "backup")
    with pytest.raises(BackupFailed, match="is there already"):
        back_up(tmp_path / "data", tmp_path / "backup")
    with pytest.raises(BackupFailed, match="is there already"):
        restore(tmp_path / "backup", tmp_path / "data")
    with pytest.raises(BackupFailed, match="holds no"):
        back_up(tmp_path / "none", tmp_path / "other")
