"""What runs in the children of these tests."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from wbar_training.messages import Crashed, Stopped, StopReason
from wbar_worker.processes import ControlChannel, Entry


def wait_for_stop(_request: None, channel: ControlChannel) -> None:
    """Say so as soon as a stop is asked for."""
    channel.send(Crashed(why="started"))
    while channel.stop_requested is None:
        time.sleep(0.01)
    reason: StopReason = channel.stop_requested
    channel.send(Stopped(reason=reason))


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


def die(number: signal.Signals, _channel: ControlChannel) -> None:
    os.kill(os.getpid(), number)


class _Touch:
    """Unpickling it creates a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.witness,)


WAIT_FOR_STOP: Entry[None] = Entry("tests.worker.entries", "wait_for_stop")
SEND_A_PICKLE: Entry[Path] = Entry("tests.worker.entries", "send_a_pickle")
SEND_FROM_THREADS: Entry[int] = Entry("tests.worker.entries", "send_from_threads")
ANSWER_NONSENSE: Entry[Any] = Entry("tests.worker.entries", "answer_nonsense")
DIE: Entry[signal.Signals] = Entry("tests.worker.entries", "die")
