"""What runs in the children of these tests."""

import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from wbar_training.messages import Crashed, Stopped, StopReason
from wbar_worker.processes import ControlChannel, Entry, confine
from wbar_worker.written_content import write_content


def wait_for_stop(_request: None, channel: ControlChannel) -> None:
    """Say so as soon as a stop is asked for."""
    channel.send(Crashed(why="started"))
    while channel.stop_requested is None:
        time.sleep(0.01)
    reason: StopReason = channel.stop_requested
    channel.send(Stopped(reason=reason))


def die_when_asked_to_stop(_request: object, channel: ControlChannel) -> None:
    """Crash as soon as a stop is asked for."""
    while channel.stop_requested is None:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGSEGV)


def send_a_pickle(witness: Path, channel: ControlChannel) -> None:
    """What a hostile upload that took over its process would try: to run something in the worker."""
    channel._pipe.send(_Touch(witness))


def send_from_threads(count: int, channel: ControlChannel) -> None:
    """Send many messages, longer than what a pipe takes at once, from four threads at the same time."""

    def send(thread: int) -> None:
        for _ in range(count):
            channel.send(Crashed(why=str(thread) * 40_000))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def answer_nonsense(_request: object, channel: ControlChannel) -> None:
    """Send what is no message, and live on."""
    channel._pipe.send_bytes(b"nonsense")
    threading.Event().wait()


def answer_by_half(_request: object, channel: ControlChannel) -> None:
    """Send the length of a message and its first byte, and live on."""
    os.write(channel._pipe.fileno(), (1000).to_bytes(4, "big") + b"{")
    threading.Event().wait()


def die(number: signal.Signals, _channel: ControlChannel) -> None:
    os.kill(os.getpid(), number)


def try_to_get_out(attempt: tuple[int, Path, int], channel: ControlChannel) -> None:
    """Do what a hostile upload that took over its process would: connect, run a program, trace the worker, fill the disk.

    attempt: the port of a server on this machine, a folder, and the worker's process.
    """
    confine(memory=4 * 1024**3, seconds=60, file_bytes=1_000_000)
    port, folder, worker = attempt

    def write_much() -> None:
        with open(folder / "large", "wb") as file:
            for _ in range(20):
                file.write(bytes(100_000))

    def ptrace_parent() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(16, os.getppid(), 0, 0) != 0:  # PTRACE_ATTACH
            raise OSError(ctypes.get_errno(), "ptrace")

    attempts: dict[str, Callable[[], Any]] = {
        "connect": lambda: socket.create_connection(("127.0.0.1", port), timeout=5),
        "connect over IPv6": lambda: socket.socket(socket.AF_INET6),
        "unix socket": lambda: socket.socket(socket.AF_UNIX).connect(str(folder / "socket")),
        "run": lambda: subprocess.run(["/bin/true"], check=True),
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "ptrace": ptrace_parent,
        "kill": lambda: os.kill(os.getppid(), 0),
        "memory": lambda: open(f"/proc/{worker}/mem", "rb"),  # noqa: SIM115
        "environment": lambda: open(f"/proc/{worker}/environ", "rb"),  # noqa: SIM115
        "open many": lambda: [open(os.devnull) for _ in range(300)],  # noqa: SIM115
        "write much": write_much,
        "threads": lambda: [thread.join() for thread in _started(8)],
    }
    results = {}
    for name, act in attempts.items():
        try:
            act()
            results[name] = "done"
        except OSError as error:
            results[name] = errno.errorcode[error.errno or 0]
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    results |= {"filter": status["Seccomp"].strip(), "no new privileges": status["NoNewPrivs"].strip()}
    results |= {"capabilities": status["CapPrm"].strip("\t\n 0")}
    channel.send(Crashed(why=json.dumps(results)))


def show_environment(_request: None, channel: ControlChannel) -> None:
    """Send what this process's environment is now, and what it and the forkserver were started with."""
    files = [Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace") for pid in ("self", os.getppid())]
    channel.send(Crashed(why="\n".join([*files, *os.environ, *os.environ.values()])))


def abort(_request: None, _channel: ControlChannel) -> None:
    os.abort()


def give(request: tuple[int, Connection, bool], channel: ControlChannel) -> None:
    """Write so many times `LINE` as content, and answer; or, where the last is not said, die with the content half written."""
    count, end, answers = request
    if not answers:
        os.write(end.fileno(), LINE)
        os.kill(os.getpid(), signal.SIGKILL)
    write_content(end, (LINE for _ in range(count)))
    channel.send(Crashed(why="that was all"))


def _started(count: int) -> list[threading.Thread]:
    threads = [threading.Thread(target=sum, args=([1, 2],)) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


class _Touch:
    """Unpickling it creates a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.witness,)


LINE = bytes(range(256)) * 401  # no part of a chunk of the store

WAIT_FOR_STOP: Entry[None] = Entry("tests.worker.entries", "wait_for_stop")
SEND_A_PICKLE: Entry[Path] = Entry("tests.worker.entries", "send_a_pickle")
SEND_FROM_THREADS: Entry[int] = Entry("tests.worker.entries", "send_from_threads")
ANSWER_NONSENSE: Entry[Any] = Entry("tests.worker.entries", "answer_nonsense")
SHOW_ENVIRONMENT: Entry[None] = Entry("tests.worker.entries", "show_environment")
DIE_WHEN_ASKED_TO_STOP: Entry[Any] = Entry("tests.worker.entries", "die_when_asked_to_stop")
ABORT: Entry[None] = Entry("tests.worker.entries", "abort", isolated=True)
TRY_TO_GET_OUT: Entry[tuple[int, Path, int]] = Entry("tests.worker.entries", "try_to_get_out", isolated=True)
ANSWER_BY_HALF: Entry[Any] = Entry("tests.worker.entries", "answer_by_half", isolated=True)
GIVE: Entry[tuple[int, Connection, bool]] = Entry("tests.worker.entries", "give", isolated=True)
DIE: Entry[signal.Signals] = Entry("tests.worker.entries", "die")
