"""One job on several devices: `torch.distributed.run` starts a process for each, DistributedDataParallel joins their gradients.

    rank r of R trains on images r·B/R … (r + 1)·B/R of every batch: together the batch that one device would have had
    ‖ every rank follows the same course and keeps the same w̄; BatchNorm's moments and held-out outputs are gathered
    ‖ rank 0 alone writes files and talks: its reporter is a line to the process that started the ranks

Whatever one rank decides by the clock or by what it is told, rank 0 decides, and the others hear it at the same step.
A rank that dies takes the others with it: the attempt ends, and goes on from the last saved state.
"""

import os
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from wbar.errors import DevicesUnavailable, JobError
from wbar.jobs import MetricsPoint, Progress, Score
from wbar_training.meter import Reporter, Stopped
from wbar_training.plan import Outcome, Work

GRACE_SECONDS = 60.0  # for rank 0 to save its state, or to fail with the same
RunJob = Callable[[Work, Reporter], Outcome]


def run_on_ranks(work: Work, reporter: Reporter, devices: int, entry: str) -> Outcome:
    """Run `entry` ("module:function", a RunJob) on every rank and give back what rank 0 gave.

    Raises what rank 0 raised (Stopped, JobError); RuntimeError naming the rank if a process died; DevicesUnavailable if
    there are fewer GPUs.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    gpus = torch.cuda.device_count()
    if work.device.startswith("cuda") and gpus < devices:
        raise DevicesUnavailable(
            f"recipe.devices is {devices} and this worker has {gpus} GPUs for the job: ask for {gpus}"
        )
    with tempfile.TemporaryDirectory(prefix="wbar-ranks-") as folder:
        key = os.urandom(16)
        host = _Host(Listener(str(Path(folder) / "line"), authkey=key), reporter)
        order = Path(folder) / "order"
        order.write_bytes(pickle.dumps((work, str(host.address), key, entry)))
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,  # what goes on after a death is the job's next attempt, from its saved state
            monitor_interval=0.1,
            run_id="wbar",
        )
        try:
            elastic_launch(config, sys.executable)("-P", "-m", "wbar_training.distributed.launch", str(order))
        except ChildFailedError as error:
            if host.answer is None and host.failure is None:
                rank, failure = error.get_first_failure()
                raise RuntimeError(f"rank {rank} of {devices} ended with {failure.exitcode}") from None
        finally:
            host.close()
    return host.result()


class _Host:
    """Carries what rank 0 says to the reporter; holds a line to every rank, which ends with this process."""

    def __init__(self, listener: Listener, reporter: Reporter) -> None:
        self._listener, self._reporter = listener, reporter
        self.address = listener.address
        self.answer: tuple[str, Any] | None = None
        self.failure: tuple[str, str] | None = None  # of a rank other than 0
        self._lines: list[Connection] = []
        threading.Thread(target=self._accept, name="ranks", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                line = self._listener.accept()
                speaks = line.recv()
            except (OSError, EOFError):
                return
            self._lines.append(line)
            if speaks:
                # Rank 0 talks all the time; another rank only to say what it failed with.
                threading.Thread(target=self._serve, args=(line,), name="rank-0", daemon=True).start()

    def _serve(self, line: Connection) -> None:
        try:
            while True:
                name, values = line.recv()
                if name == "answer":
                    self.answer = values
                    line.send(None)
                elif name == "failure":
                    self.failure = values
                    line.send(None)
                else:
                    line.send(getattr(self._reporter, name)(*values))
        except (EOFError, OSError):
            return

    def result(self) -> Outcome:
        if self.answer is None and self.failure is not None:
            raise _error(*self.failure)
        if self.answer is None:
            raise RuntimeError("the ranks ended without a result")
        kind, value = self.answer
        if kind == "stopped":
            raise Stopped(value)
        if kind == "failed":
            raise _error(*value)
        assert isinstance(value, Outcome)
        return value

    def close(self) -> None:
        self._listener.close()
        for line in self._lines:
            line.close()


class Line:
    """Rank 0's reporter: asks the process that started the ranks. On other ranks nothing is said, and nobody answers."""

    def __init__(self, connection: Connection, leads: bool) -> None:
        self._connection, self._leads = connection, leads

    def _say(self, name: str, *values: Any) -> Any:
        if not self._leads:
            return None
        self._connection.send((name, values))
        return self._connection.recv()

    def heartbeat(self, progress: Progress) -> str | None:
        reason: str | None = self._say("heartbeat", progress)
        return reason

    def metrics(self, points: list[MetricsPoint]) -> None:
        self._say("metrics", points)

    def snapshot(self, n: int, step: int, path: str, score: Score) -> None:
        self._say("snapshot", n, step, path, score)

    def averaged(self, n: int, score: Score) -> None:
        self._say("averaged", n, score)

    def saved(self, path: str, step: int, durable: bool) -> None:
        self._say("saved", path, step, durable)

    def log(self, level: str, message: str) -> None:
        self._say("log", level, message)

    def answer(self, kind: str, value: Any) -> None:
        """Rank 0's last word. Another rank waits until it is ended: rank 0 may be writing what must not be lost."""
        if self._leads:
            self._connection.send(("answer", (kind, value)))
            self._connection.recv()
        elif kind != "done":
            if kind == "failed":
                self._connection.send(("failure", value))
                self._connection.recv()
            time.sleep(GRACE_SECONDS)


def _rank(work: Work, address: str, key: bytes, entry: str) -> None:
    """What every rank's process does."""
    lifeline = _connected(address, key, speaks=False)
    threading.Thread(target=_die_with, args=(lifeline,), name="lifeline", daemon=True).start()
    on_gpu = work.device.startswith("cuda")
    dist.init_process_group("nccl" if on_gpu else "gloo")  # torch.distributed.run has told this process its rank
    rank, size = dist.get_rank(), dist.get_world_size()
    line = Line(_connected(address, key, speaks=True), leads=rank == 0)
    if on_gpu:
        torch.cuda.set_device(rank)
    torch.set_num_threads(max(1, (work.threads or 1) // size))
    module, function = entry.split(":")
    from importlib import import_module

    run: RunJob = getattr(import_module(module), function)
    done = False
    try:
        line.answer("done", run(work, line))
        done = True
    except Stopped as stopped:
        line.answer("stopped", stopped.reason)
    except JobError as error:
        line.answer("failed", (error.code, error.detail))
    # A rank that stops in the middle leaves others that wait for it: its exit status has them ended.
    os._exit(0 if done else 1)


def _connected(address: str, key: bytes, speaks: bool) -> Connection:
    line: Any = Client(address, authkey=key)
    line.send(speaks)
    return line  # type: ignore[no-any-return]


def _die_with(lifeline: Connection) -> None:
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os._exit(70)  # the process that started the ranks is gone: nobody would take the result


def _error(code: str, detail: str) -> JobError:
    known = {kind.code: kind for kind in JobError.__subclasses__()}
    return known.get(code, JobError)(detail)


if __name__ == "__main__":
    # Written by this user's own process a moment ago, in a folder that nobody else can read.
    _rank(*pickle.loads(Path(sys.argv[1]).read_bytes()))  # noqa: S301  # see above
