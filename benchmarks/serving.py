"""The API alone, on a database and a blob folder of its own: for loads that no worker should take part in.

with serving() as service:
    service.store.jobs.create(...)
    service.http.get("/v1/jobs")
"""

import os
import resource
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.running import wait_until
from wbar.checkpoints import CheckpointFacts
from wbar.datasets import ImageShape, Split
from wbar.method import CyclicSwa
from wbar.recipe import Recipe
from wbar.spec import JobSpec, Network, StoredDataset, StoredWeights
from wbar_store.blobs import Blobs
from wbar_store.checkpoints import GivenNetwork
from wbar_store.claims import Claim
from wbar_store.database import Database, Tenant
from wbar_store.datasets import DatasetSummary
from wbar_store.migrate import upgrade
from wbar_store.notifier import Notifier
from wbar_store.store import Store

MINE = Tenant("default")


@dataclass
class ApiOnly:
    """A running API, a client of it, and the store that it works on."""

    pid: int
    port: int
    key: str
    http: httpx.Client
    store: Store
    spec: JobSpec  # of a job on a checkpoint and a dataset that are ready
    start_seconds: float  # from the start of its process to its first answer


@contextmanager
def serving(files: int = 8192) -> Iterator[ApiOnly]:
    """Start the API on SQLite, and end it however the block ends. files: that it, and this process, may open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, hard), hard))
    with tempfile.TemporaryDirectory(prefix="wbar-bench-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
        database = Database(f"sqlite:///{home / 'wbar.db'}")
        upgrade(database)
        store = Store(database, Blobs(f"file://{home / 'blobs'}", database), Notifier("memory://"))
        key, port = store.keys.create("benchmark").key, listening.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WBAR_")}
        environment |= {
            "WBAR_DATABASE_URL": f"sqlite:///{home / 'wbar.db'}",
            "WBAR_BLOBS_URL": f"file://{home / 'blobs'}",
            "WBAR_BROKER_URL": "memory://",
            "WBAR_FD": str(listening.fileno()),
        }
        with open(home / "log", "wb") as log:
            began = time.perf_counter()
            command = [sys.executable, "-P", "-m", "wbar_service"]
            process = subprocess.Popen(command, env=environment, pass_fds=(listening.fileno(),), stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            with httpx.Client(
                base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False
            ) as http:
                wait_until(lambda: _answers(url), 60, "the API")
                start_seconds = time.perf_counter() - began
                yield ApiOnly(process.pid, port, key, http, store, _spec(store), start_seconds)
        finally:
            process.terminate()
            process.wait(30)
            listening.close()
            store.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _spec(store: Store) -> JobSpec:
    """Insert a checkpoint and a dataset that are ready, and return the spec of a job on them."""
    upload = store.blobs.receive()
    upload.write(secrets.token_bytes(1024))
    received, network = upload.finish(), Network("resnet20", 10)
    with store.blobs.keep(received) as sha256:
        start = store.checkpoints.create(MINE, "start", received, GivenNetwork())
        store.checkpoints.claim(start.id)
        facts = CheckpointFacts("safetensors", 269_722, 123, network, "detected", "", None)
        store.checkpoints.accept(Claim(start.id, 1), facts, sha256)
        dataset = store.datasets.create(MINE, "digits", "classification", "builtin:digits")
        store.datasets.claim(dataset.id)
        summary = DatasetSummary(
            classes=list("0123456789"), splits={"train": Split(images=1438), "val": Split(images=359)},
            image=ImageShape(channels=1, height=8, width=8), many_sizes=False, mean=[0.3], std=[0.4], held_out=None,
            warnings=[],
        )  # fmt: skip
        store.datasets.accept(Claim(dataset.id, 1), sha256, 1024, sha256, summary)
    return JobSpec(
        start=StoredWeights(id=start.id, sha256=sha256, blob=sha256, prefix="", network=network),
        dataset=StoredDataset(id=dataset.id, sha256=sha256, blob=sha256),
        network=network, classes=None, method=CyclicSwa(), recipe=Recipe(), seed=0,
    )  # fmt: skip
