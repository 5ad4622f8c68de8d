"""One job on several devices: `torch.distributed.run` starts a process for each, DDP joins their gradients.

    rank r of R trains on images r·B/R … (r + 1)·B/R of every batch: together the batch that one device would have had
    every rank follows the same schedule and keeps the same w̄; BatchNorm's moments and held-out outputs are gathered
    rank 0 alone writes files and reports: its messages go to the process that started the ranks

Decisions by the clock or by a message are taken by rank 0, and the others learn them at the same step. A rank that dies
takes the others with it: the attempt ends, and goes on from the last saved state.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from pydantic import BaseModel

from wbar.errors import DevicesUnavailable, JobError, job_error
from wbar.spec import JobSpec
from wbar_training.messages import Ending, Failed, FromAttempt, Report, Stop, Stopped, StopReason, Succeeded
from wbar_training.outcome import Outcome
from wbar_training.reporter import MessageReporter, Reporter, StopRequested, deliver
from wbar_training.workspace import Workspace

GRACE_SECONDS = 60.0  # for rank 0 to save its state, or to fail with the same
RunJob = Callable[[JobSpec, Workspace, Reporter], Outcome]


class RankOrder(BaseModel):
    """The order to a rank's process.

    entry: `module:function`, a RunJob.
    address, key: of the host's listener.
    """

    spec: JobSpec
    workspace: Workspace
    entry: str
    address: str
    key: str


def run_on_ranks(spec: JobSpec, workspace: Workspace, reporter: Reporter, entry: str) -> Outcome:
    """Run `entry` on `spec.recipe.devices` ranks and return rank 0's outcome.

    entry: `module:function`, a RunJob.

    Raises rank 0's StopRequested or JobError; RuntimeError naming the rank if a process died; DevicesUnavailable if
    there are fewer GPUs.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    gpus, devices = torch.cuda.device_count(), spec.recipe.devices
    if workspace.device.startswith("cuda") and gpus < devices:
        raise DevicesUnavailable(
            f"recipe.devices is {devices} and this worker has {gpus} GPUs for the job: ask for {gpus}"
        )
    with tempfile.TemporaryDirectory(prefix="wbar-ranks-") as folder:
        key = os.urandom(16)
        host = _Host(Listener(str(Path(folder) / "host"), authkey=key), reporter)
        order = RankOrder(spec=spec, workspace=workspace, entry=entry, address=str(host.address), key=key.hex())
        path = Path(folder) / "order.json"
        path.write_text(order.model_dump_json())
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,  # after a death the job's next attempt goes on from its saved state
            monitor_interval=0.1,
            run_id="wbar",
        )
        try:
            elastic_launch(config, sys.executable)("-P", "-m", "wbar_training.distributed.launch", str(path))
        except ChildFailedError as error:
            if host.ending is None and host.failure is None:
                rank, failure = error.get_first_failure()
                raise RuntimeError(f"rank {rank} of {devices} ended with {failure.exitcode}") from None
        finally:
            host.close()
    return host.outcome()


class _Host:
    """Hands rank 0's messages to the reporter, and keeps a connection to every rank, which ends with this process."""

    def __init__(self, listener: Listener, reporter: Reporter) -> None:
        self._listener, self._reporter = listener, reporter
        self.address = listener.address
        self.ending: Ending | None = None  # rank 0's last message
        self.failure: Failed | None = None  # of a rank other than 0
        self._connections: list[Connection] = []
        threading.Thread(target=self._accept, name="ranks", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
                rank = int(connection.recv_bytes())
            except (OSError, EOFError):
                return
            self._connections.append(connection)
            if rank >= 0:
                threading.Thread(target=self._serve, args=(connection, rank), name=f"rank-{rank}", daemon=True).start()

    def _serve(self, connection: Connection, rank: int) -> None:
        """Answer a rank's messages: rank 0 reports all the time, another rank only its failure."""
        try:
            while True:
                message = FromAttempt.validate_json(connection.recv_bytes())
                reason: StopReason | None = None
                if not isinstance(message, Ending):
                    reason = deliver(message, self._reporter)
                elif rank == 0:
                    self.ending = message
                elif isinstance(message, Failed):
                    self.failure = message
                connection.send_bytes(Stop(reason=reason).model_dump_json().encode() if reason else b"")
        except (EOFError, OSError):
            return

    def outcome(self) -> Outcome:
        ending = self.ending or self.failure
        match ending:
            case Succeeded():
                return ending.outcome
            case Stopped():
                raise StopRequested(ending.reason)
            case Failed():
                raise job_error(ending.code, ending.message)
        raise RuntimeError("the ranks ended without a result")

    def close(self) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.close()


# In the process of a rank.


def _connect(order: RankOrder, rank: int) -> Connection:
    connection: Any = Client(order.address, authkey=bytes.fromhex(order.key))
    connection.send_bytes(str(rank).encode())
    return connection  # type: ignore[no-any-return]  # the stub knows the class of Unix sockets only by its interface


def _run_rank(order: RankOrder) -> NoReturn:
    lifeline = _connect(order, -1)
    threading.Thread(target=_die_with, args=(lifeline,), name="lifeline", daemon=True).start()
    workspace = order.workspace
    on_gpu = workspace.device.startswith("cuda")
    dist.init_process_group("nccl" if on_gpu else "gloo")  # torch.distributed.run has told this process its rank
    rank, size = dist.get_rank(), dist.get_world_size()
    connection = _connect(order, rank)
    if on_gpu:
        torch.cuda.set_device(rank)
    torch.set_num_threads(max(1, (workspace.threads or 1) // size))
    module, function = order.entry.split(":")
    run: RunJob = getattr(import_module(module), function)

    def send(message: Report | Ending) -> StopReason | None:
        connection.send_bytes(message.model_dump_json().encode())
        answer = connection.recv_bytes()
        return Stop.model_validate_json(answer).reason if answer else None

    def report(message: Report) -> StopReason | None:
        return send(message) if rank == 0 else None

    ending = _ending(run, order, MessageReporter(report))
    if rank == 0 or isinstance(ending, Failed):
        send(ending)
    if rank > 0 and not isinstance(ending, Succeeded):
        time.sleep(GRACE_SECONDS)  # rank 0 may be writing a state that must not be lost; torch ends all ranks together
    # A rank that stops in the middle leaves others that wait for it: its exit status ends them.
    os._exit(0 if isinstance(ending, Succeeded) else 1)


def _ending(run: RunJob, order: RankOrder, reporter: Reporter) -> Succeeded | Stopped | Failed:
    try:
        outcome = run(order.spec, order.workspace, reporter)
    except StopRequested as stopped:
        return Stopped(reason=stopped.reason)
    except JobError as error:
        return Failed(code=error.code, message=error.detail)
    return Succeeded(outcome=outcome)


def _die_with(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(70)  # the process that started the ranks is gone, and no other takes the result


if __name__ == "__main__":
    _run_rank(RankOrder.model_validate_json(Path(sys.argv[1]).read_bytes()))
