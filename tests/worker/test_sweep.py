"""What killed workers left in the scratch folder goes, and what its own worker deletes meanwhile is no failure."""

import os
import time
from pathlib import Path

from wbar_store.migrate import upgrade
from wbar_store.store import Store
from wbar_worker.settings import WorkerSettings
from wbar_worker.sweep import ABANDONED_SECONDS, Sweeper


def test_abandoned_folders_go_and_one_that_is_gone_already_is_passed_over(tmp_path: Path) -> None:
    settings = WorkerSettings(
        database_url=f"sqlite:///{tmp_path / 'wbar.db'}", broker_url="redis://127.0.0.1:9/0",
        blobs_url=f"file://{tmp_path / 'blobs'}", scratch=tmp_path / "scratch",
    )  # fmt: skip
    store = Store.open(settings)
    try:
        upgrade(store.database)
        old, new = [], []
        for kind in ("ingest", "merges", "predict"):
            (settings.scratch / kind).mkdir(parents=True)
            (settings.scratch / kind / "a").symlink_to(tmp_path / "nowhere")  # listed, and gone when it is looked at
            old.append(settings.scratch / kind / "old")
            new.append(settings.scratch / kind / "new")
        for folder in old + new:
            folder.mkdir()
            (folder / "weights.safetensors").write_bytes(b"0")
        long_ago = time.time() - ABANDONED_SECONDS - 60
        for folder in old:
            os.utime(folder, (long_ago, long_ago))
        Sweeper(store, settings)._tidy()
        assert [folder.exists() for folder in old] == [False] * 3
        assert [folder.exists() for folder in new] == [True] * 3
    finally:
        store.close()
