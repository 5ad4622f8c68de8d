"""Fresh processes from a forkserver that has imported torch: milliseconds to start, and memory that really comes back.

The worker owns the database and the lease; a child has one pipe to it and ends when that pipe closes, so a killed worker
leaves nothing running. Only plain values cross the pipe, and the worker itself never imports torch.
"""

import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

_PRELOAD = ["wbar_worker.attempt", "wbar_worker.validate"]
Message = tuple[str, Any]


def context() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_PRELOAD)
    return found


@dataclass
class Child:
    """A running child: read messages from `pipe`, `tell` it something, `end` it."""

    process: ForkServerProcess
    pipe: Connection

    def tell(self, word: str) -> None:
        try:
            self.pipe.send(word)
        except (OSError, ValueError):
            return  # it has ended; its exit is noticed where its messages are read

    def end(self) -> None:
        """Make sure it is gone: politely has been tried by whoever calls this."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()

    def obituary(self) -> str:
        """Why it ended, for a person."""
        self.process.join(5)
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = " (the system was out of memory?)" if -code == signal.SIGKILL else ""
            return f"its process was ended by {name}{hint}"
        return f"its process ended with exit code {code}"


def start(entry: str, payload: dict[str, Any]) -> Child:
    """Run `wbar_worker.<module>.<function>` named by `entry` in a fresh process, with the payload and the pipe's other end."""
    mine, theirs = context().Pipe(duplex=True)
    process = context().Process(target=_main, args=(entry, payload, theirs), daemon=False)
    process.start()
    theirs.close()
    return Child(process, mine)


def warm_up() -> dict[str, Any]:
    """Start the forkserver (seconds: it imports torch) and learn what devices there are."""
    child = start("attempt.probe", {})
    try:
        kind, answer = child.pipe.recv()
    except EOFError:
        raise RuntimeError(f"the first training process could not start: {child.obituary()}") from None
    finally:
        child.end()
    assert kind == "probe"
    return dict(answer)


# In the child.


class Ears:
    """Listens to the worker: remembers what it said last, and ends this process when it is gone."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.heard: str | None = None
        threading.Thread(target=self._listen, name="ears", daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                self.heard = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(70)  # the worker died: nobody would take the result, and a successor may be at work already


def _main(entry: str, payload: dict[str, Any], pipe: Connection) -> None:
    # Ctrl-C in a terminal reaches the whole process group; stopping is the worker's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from importlib import import_module

    module, function = entry.split(".")
    run: Callable[[dict[str, Any], Connection, Ears], None] = getattr(import_module(f"wbar_worker.{module}"), function)
    run(payload, pipe, Ears(pipe))
    pipe.close()


def confine(memory: int, seconds: float) -> None:
    """Limits for a process that reads what strangers sent: heap, processor time, and no core dumps."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    cpu = int(seconds) * max(1, os.cpu_count() or 1)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
