"""Processes of the service under test, found in /proc by the mark in their environment; Linux only."""

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

MARK = "WBAR_FAULT_HOUSE"


def marked(mark: str) -> dict[int, int]:
    """Return the processes that have this mark, and the parent of each; those that have ended do not count."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError, IndexError):
            if f"{MARK}={mark}".encode() not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            if state not in "ZX":
                found[int(entry.name)] = int(parent)
    return found


def below(processes: dict[int, int], ancestor: int) -> list[int]:
    """Return the processes below `ancestor`."""
    children = [pid for pid, parent in processes.items() if parent == ancestor]
    return children + [pid for child in children for pid in below(processes, child)]


def grandchildren(processes: dict[int, int], worker: int) -> list[int]:
    """Return what the worker's forkserver has started: training processes, or those that read uploads."""
    return [pid for pid, parent in processes.items() if processes.get(parent) == worker]


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def send_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process and everything it started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def end_with_parent() -> None:
    """Have this process end with the harness, in whatever way that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
