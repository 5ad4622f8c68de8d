"""Real servers for the tests: Valkey, API, workers and sweeper as processes, on SQLite and, where there is one, PostgreSQL.

PostgreSQL is used when WBAR_TEST_POSTGRESQL_URL names a server (`.ci/run` starts one): every test that takes `database_url`
or `service` then runs on both databases.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text

from wbar.client import Client
from wbar_service.embedded import broker_command, broker_options
from wbar_store.database import Database, Tenant
from wbar_store.keys import Keys
from wbar_store.migrate import upgrade

POSTGRESQL = os.environ.get("WBAR_TEST_POSTGRESQL_URL")
DATABASES = ["sqlite", *(["postgresql"] if POSTGRESQL else [])]
# What stands before the store is the same on either database, and so are services whose questions to it others ask, too: on
# PostgreSQL they are tried with the long tests.
FRONTS = frozenset({"client", "clients", "dashboard"})
ALIKE = frozenset(
    {
        "test_cloning", "test_connections", "test_detection", "test_doctor", "test_document", "test_evaluation_sets",
        "test_exported", "test_formats", "test_headers", "test_made_checkpoints", "test_merges", "test_predict",
        "test_predict_tasks", "test_probe_images", "test_reading", "test_recipes", "test_regression", "test_segmentation",
        "test_timm", "test_tracing", "test_transformers",
    }
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        on_postgresql = "[postgresql" in item.name
        if (item.path.parent.name in FRONTS or item.path.stem in ALIKE) and on_postgresql:
            item.add_marker(pytest.mark.long)


def wait_until(condition: Callable[[], object], seconds: float = 60.0, what: str = "the condition") -> None:
    """Poll a condition of another process, bounded in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come true within {seconds:g} s")
        time.sleep(0.02)


@contextmanager
def fresh_database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database, dropped at the end."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'wbar.db'}"
        return
    assert POSTGRESQL is not None
    name = f"wbar_{uuid.uuid4().hex[:12]}"
    engine = create_engine(POSTGRESQL.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield f"{POSTGRESQL.rsplit('/', 1)[0]}/{name}"
    finally:
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        engine.dispose()


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with fresh_database(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    upgrade(opened)
    yield opened
    opened.dispose()


class Broker:
    """A Valkey of our own on a Unix socket."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="wbar-test-"))
        self.socket = self.folder / "valkey.sock"
        self.url = f"redis+socket://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [*broker_command(), *broker_options(self.socket)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self.socket.exists, 20, "the broker's socket")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.socket.unlink(missing_ok=True)


class Service:
    """What production runs, each part its own process: `wbar serve`, two workers, the sweeper."""

    def __init__(self, folder: Path, database_url: str, broker: Broker, **environment: str) -> None:
        self.folder, self.broker = folder, broker
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WBAR_")},
            "WBAR_DATABASE_URL": database_url,
            "WBAR_BROKER_URL": broker.url,
            "WBAR_BLOBS_URL": f"file://{folder / 'blobs'}",
            "WBAR_SCRATCH": str(folder / "scratch"),
            "WBAR_FD": str(self._listening.fileno()),
            "WBAR_LEASE_SECONDS": "2",
            "WBAR_SWEEP_SECONDS": "0.2",
            "WBAR_SAVE_EVERY_SECONDS": "0.2",
            "WBAR_THREADS": "1",
            "WBAR_DEVICE": "cpu",
            "WBAR_SMP": "false",  # nor load the library for its names
            "WBAR_TRANSFORMERS": "false",  # nor build each of its networks as shapes
            "WBAR_TIMM": "false",  # or workers would make the table of its networks, in minutes
            **environment,
        }
        self.database = Database(database_url)
        upgrade(self.database)
        keys = Keys(self.database)
        self.key, self.other_key = keys.create("tests").key, keys.create("another tenant", Tenant("other")).key
        self.log = open(folder / "log", "wb")  # noqa: SIM115  # closed in stop()
        self.parts: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str) -> None:
        commands = {
            "api": ["-m", "wbar_service"],
            "train": ["-m", "wbar_worker", "train"],
            "ingest": ["-m", "wbar_worker", "ingest"],
            "sweep": ["-m", "wbar_worker", "sweep"],
        }
        for name in names or tuple(commands):
            self.parts[name] = subprocess.Popen(
                [sys.executable, "-P", *commands[name]],
                env=self.environment,
                pass_fds=(self._listening.fileno(),) if name == "api" else (),
                stdout=self.log,
                stderr=self.log,
                start_new_session=True,
            )
        if "api" in self.parts:
            wait_until(self._answers, 60, "the API")
        if not names or {"train", "ingest"} <= set(names):
            wait_until(lambda: httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200, 90, "readiness")

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one part and wait until it is gone."""
        self.parts[name].send_signal(number)
        self.parts.pop(name).wait(60)

    def client(self, key: str | None = None) -> Client:
        return Client(self.url, key or self.key)

    def http(self, key: str | None = "") -> httpx.Client:
        """Bare HTTP with the default tenant's key, another one, or none."""
        chosen = self.key if key == "" else key
        headers = {"Authorization": f"Bearer {chosen}"} if chosen else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def blob_files(self) -> set[str]:
        """The sha256 names of every blob on disk, and of every temporary file."""
        return {path.name for path in (self.folder / "blobs").rglob("*") if path.is_file()}

    def stop(self) -> None:
        for process in self.parts.values():
            process.send_signal(signal.SIGTERM)
        for process in self.parts.values():
            try:
                process.wait(45)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._listening.close()
        self.database.dispose()
        self.log.close()


@pytest.fixture(scope="session", params=DATABASES)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One whole service per database, shared by the tests that do not kill its parts."""
    folder = tmp_path_factory.mktemp(f"service-{request.param}")
    with fresh_database(request.param, folder) as url:
        own = Broker()
        own.start()
        started = Service(folder, url, own)
        started.start()
        yield started
        started.stop()
        own.kill()


@pytest.fixture
def breakable(tmp_path: Path) -> Iterator[Service]:
    """A service for one test that kills its parts; nothing is started yet."""
    with fresh_database(DATABASES[-1], tmp_path) as url:
        own = Broker()
        own.start()
        made = Service(tmp_path, url, own)
        yield made
        made.stop()
        own.kill()
