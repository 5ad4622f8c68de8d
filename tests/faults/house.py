"""The service under test: the API, two training workers, the ingest worker, the sweeper, Valkey and a database, all real.

It stays up for many faults; a fault that kills a part starts it again. Every process carries a mark in its environment, so
that what is left over is found.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx
from sqlalchemy import text

from tests.conftest import Broker, wait_until
from tests.faults import processes
from tests.faults.disks import SmallDisk
from tests.faults.plans import Plan
from tests.faults.postgresql import PostgresServer
from wbar_store.keys import Keys
from wbar_store.migrate import upgrade
from wbar_store.store import Store
from wbar_worker.settings import WorkerSettings
from wbar_worker.sweep import Sweeper

LEASE = 2.0
HOOK = Path(__file__).with_name("hook")
COMMANDS = {
    "api": ("wbar_service",),
    "train": ("wbar_worker", "train"),
    "train2": ("wbar_worker", "train"),
    "ingest": ("wbar_worker", "ingest"),
    "sweep": ("wbar_worker", "sweep"),
}
TRAINING = ("train", "train2")


class House:
    """All parts of the service, each a process of its own.

    apart: whether the training workers have scratch folders of their own, as on two hosts, or one, as on one host.
    """

    def __init__(self, database: str, apart: bool) -> None:
        self.database_kind, self.apart = database, apart
        self.mark = uuid.uuid4().hex
        self.folder = Path(tempfile.mkdtemp(prefix="wbar-faults-"))
        self.plans = self.folder / "plans"
        self.plans.mkdir()
        self.blobs_disk = SmallDisk(self.folder / "blobs", 48)
        self.scratch_disk = SmallDisk(self.folder / "scratch", 48)
        self.server = PostgresServer() if database == "postgresql" else None
        self.database_url = self.server.url if self.server else f"sqlite:///{self.folder / 'wbar.db'}"
        self.broker = Broker()
        self.broker.start()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.clock = self.folder / "clock"
        self.log = open(self.folder / "log", "wb")  # noqa: SIM115  # closed in stop()
        self.settings = WorkerSettings(
            database_url=self.database_url,
            broker_url=self.broker.url,
            blobs_url=f"file://{self.folder / 'blobs'}",
            scratch=self.folder / "scratch",
            lease_seconds=LEASE,
        )
        self.store = Store.open(self.settings)
        upgrade(self.store.database)
        self.key = Keys(self.store.database).create("faults").key
        self.http = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=60, trust_env=False
        )
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        self.skewed: set[str] = set()  # parts whose clock can be moved
        self.start_seconds = 0.0  # of a worker, measured

    # The parts.

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a part."""
        scratch = self.scratch_disk.folder / (name if self.apart and name in TRAINING else "shared")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("WBAR_")}
        paths = [str(HOOK), *filter(None, [inherited.get("PYTHONPATH")])]
        made = {
            **inherited,
            "PYTHONPATH": os.pathsep.join(paths),
            processes.MARK: self.mark,
            "WBAR_FAULT_PLANS": str(self.plans),
            "WBAR_FAULT_PART": name,
            "WBAR_DATABASE_URL": self.database_url,
            "WBAR_BROKER_URL": self.broker.url,
            "WBAR_BLOBS_URL": f"file://{self.blobs_disk.folder}",
            "WBAR_SCRATCH": str(scratch),
            "WBAR_FD": str(self._listening.fileno()),
            "WBAR_LEASE_SECONDS": str(LEASE),
            "WBAR_SWEEP_SECONDS": "0.2",
            "WBAR_SAVE_EVERY_SECONDS": "0.2",
            "WBAR_DRAIN_SECONDS": "10",
            "WBAR_WEBHOOKS_ALLOW": '["127.0.0.0/8"]',
            "WBAR_WEBHOOK_SECONDS": "1",
            "WBAR_WEBHOOK_BACKOFF_SECONDS": "0.1",
            "WBAR_THREADS": "1",
            "WBAR_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        if name in self.skewed:
            made |= {
                "LD_PRELOAD": _libfaketime(),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        return made

    def start(self, *names: str) -> None:
        """Start these parts, or all, and wait until they are ready."""
        begun = time.monotonic()
        for name in names or COMMANDS:
            if name in self.parts and self.parts[name].poll() is None:
                continue
            self.parts[name] = subprocess.Popen(
                [sys.executable, "-P", "-m", *COMMANDS[name]],
                env=self.environment(name),
                pass_fds=(self._listening.fileno(),) if name == "api" else (),
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                start_new_session=True,
                preexec_fn=processes.end_with_parent,
            )
        for name in names or COMMANDS:
            wait_until(lambda name=name: self.ready(name), 120, f"the start of {name}")  # type: ignore[misc]
        if not names:
            self.start_seconds = time.monotonic() - begun

    def ready(self, name: str) -> bool:
        """Return whether a part does its work. Raises RuntimeError if its process has ended."""
        code = self.parts[name].poll()
        if code is not None:
            raise RuntimeError(f"{name} ended with {code} as it started")
        if name == "sweep":
            return True
        if name == "api":
            try:
                return httpx.get(f"{self.url}/healthz", timeout=5, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False
        pid = self.parts[name].pid
        return any(f"-{pid}@" in worker.name for worker in self.store.workers.live())

    def kill(self, *names: str) -> None:
        """Send SIGKILL to these parts, all at once, and wait for their end; what they started must end by itself."""
        for name in names:
            self.parts[name].kill()
        for name in names:
            self.parts[name].wait(30)

    def part_of(self, pid: int) -> str:
        """Return the part to which a process belongs."""
        alive = processes.marked(self.mark)
        for name, process in self.parts.items():
            if pid == process.pid or pid in processes.below(alive, process.pid):
                return name
        raise LookupError(f"process {pid} belongs to no part")

    def trainers(self) -> list[int]:
        """Return the training processes."""
        alive = processes.marked(self.mark)
        pids = [self.parts[name].pid for name in TRAINING if name in self.parts]
        return [pid for worker in pids for pid in processes.grandchildren(alive, worker)]

    def strays(self) -> list[int]:
        """Return processes of this house that belong to no living part."""
        alive = processes.marked(self.mark)
        known = {process.pid for process in self.parts.values()}
        return [pid for pid in alive if pid not in known and not any(pid in processes.below(alive, k) for k in known)]

    # The hook.

    def arm(self, plan: Plan, kill: signal.Signals | None = None, job: str | None = None) -> None:
        """Have the next process that reaches the plan's point stop there and wait."""
        document = {"id": plan.id, "point": plan.point, "when": plan.when, "nth": plan.nth}
        half = self.plans / ".plan"
        half.write_text(json.dumps({**document, "kill": kill and int(kill), "job": job}))
        half.rename(self.plans / "plan.json")

    def at(self, plan: Plan) -> int | None:
        """Return the process that waits at the plan's point."""
        try:
            return int(json.loads((self.plans / f"at-{plan.id}.json").read_text())["pid"])
        except FileNotFoundError:
            return None

    def go(self, plan: Plan) -> None:
        """Let the process at the plan's point go on, and take away a plan that nothing reached."""
        (self.plans / "plan.json").unlink(missing_ok=True)
        (self.plans / f"go-{plan.id}").touch()

    # Asking the API, which may be away for a moment.

    def ask(self, method: str, path: str, seconds: float = 120.0, **options: object) -> httpx.Response:
        """Send a request until it is answered by something else than an outage, bounded in time."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer = self.http.request(method, path, **options)  # type: ignore[arg-type]
                if answer.status_code < 500 or time.monotonic() > deadline:
                    return answer
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def sql(self, query: str, **values: object) -> list[tuple[object, ...]]:
        """Return the rows of a query of the harness's own."""
        with self.store.database.read() as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]

    # After a fault.

    def tidy(self) -> None:
        """Do what the sweeper does once everything left behind is old enough: holds of dead processes, temporary objects."""
        deadline = time.monotonic() + 3.0
        while self.sql("SELECT 1 FROM blobs WHERE holds > 0") and time.monotonic() < deadline:
            time.sleep(0.05)
        with self.store.database.write() as connection:
            connection.execute(text("UPDATE blobs SET touched_at = touched_at - 7200"))
        for folder in {Path(self.environment(name)["WBAR_SCRATCH"]) for name in TRAINING}:
            settings = self.settings.model_copy(update={"scratch": folder})
            Sweeper(self.store, settings)._tidy()
        self.store.blobs.sweep_temporaries(older_than=timedelta(0))

    def stop(self, keep: bool = False) -> list[int]:
        """Stop everything; returns the processes that were left 10 s later. keep: the folder, as evidence."""
        for name in ("train", "train2", "ingest", "sweep", "api"):
            if name in self.parts:
                processes.send_group(self.parts[name].pid, signal.SIGCONT)
                self.parts[name].terminate()
        for process in self.parts.values():
            try:
                process.wait(45)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        left = self._left(10.0)
        for pid in left:
            processes.send(pid, signal.SIGKILL)
        self.http.close()
        self.store.close()
        self.broker.kill()
        shutil.rmtree(self.broker.folder, ignore_errors=True)
        if self.server is not None:
            self.server.stop()
        self._listening.close()
        self.log.close()
        for disk in (self.blobs_disk, self.scratch_disk):
            disk.unmount()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        return left

    def _left(self, seconds: float) -> list[int]:
        return settled(lambda: list(processes.marked(self.mark)), seconds)


def settled(left: Callable[[], list[int]], seconds: float) -> list[int]:
    """Return what is left once nothing is, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while (found := left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _libfaketime() -> str:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return str(found[-1]) if found else ""


def clock_can_jump() -> bool:
    """Whether libfaketime is there (Debian: the package `faketime`)."""
    return bool(_libfaketime())
