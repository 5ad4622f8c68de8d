"""The child's side of a job: training, with a reporter that speaks through the pipe. Imported by the forkserver."""

import logging
import os
from collections.abc import Sequence

import torch

from wbar.errors import JobError
from wbar_training.loop import run
from wbar_training.messages import AtMeeting, Crashed, Failed, Report, Stopped, StopReason, Succeeded
from wbar_training.reporter import MeetingReached, MessageReporter, StopRequested
from wbar_worker.children import AttemptRequest, Machine, ProbeRequest
from wbar_worker.processes import ControlChannel, first_line


def run_attempt(request: AttemptRequest, channel: ControlChannel) -> None:
    """Run the job until it ends, stops or fails; the last message says which of these happened."""
    _choose_devices(request.gpus)

    def tell(message: Report) -> StopReason | None:
        channel.send(message)
        return channel.stop_requested

    try:
        outcome = run(request.spec, request.workspace, MessageReporter(tell))
    except StopRequested as stopped:
        channel.send(Stopped(reason=stopped.reason))
    except MeetingReached as reached:
        channel.send(AtMeeting(n=reached.n))
    except JobError as error:
        channel.send(Failed(code=error.code, message=error.detail))
    except Exception as error:
        # Not foreseen: the worker decides whether to try again; the trace belongs into its log, not to the user.
        logging.getLogger("wbar").exception("the attempt failed")
        channel.send(Crashed(why=first_line(error)))
    else:
        channel.send(Succeeded(outcome=outcome))


def _choose_devices(gpus: Sequence[int]) -> None:
    # Before CUDA's first use in this process: a job sees only its own devices.
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = allowed.split(",") if allowed else None
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[gpu] if names else str(gpu) for gpu in gpus)
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS is deterministic only with it


def probe(_request: ProbeRequest, channel: ControlChannel) -> None:
    """Send the number of GPUs that torch sees, and its version."""
    channel.send(Machine(gpus=torch.cuda.device_count(), torch=str(torch.__version__)))
