"""What runs on every rank of the tests of several ranks on one GPU: their process group is gloo's, on the device's tensors.

The service gives every rank a GPU of its own, and NCCL. Where there is one GPU, gloo shows that the ranks' exchange is right
on device memory.
"""

from dataclasses import replace

import torch

from tests.gpu.conftest import DEVICE
from wbar.spec import JobSpec
from wbar_training.distributed.ranks import Ranks
from wbar_training.loop import TrainingJob
from wbar_training.outcome import Outcome
from wbar_training.reporter import Reporter
from wbar_training.workspace import Workspace


def on_one_device(spec: JobSpec, workspace: Workspace, reporter: Reporter) -> Outcome:
    """Train, and hold every tensor of w̄ beside the other rank's."""
    job = TrainingJob(spec, replace(workspace, device=DEVICE), reporter)
    outcome = job.run()
    held = {name: tensor.cpu() for name, tensor in job.evaluator.network.state_dict().items()}
    every = Ranks.here().gathered(held)
    equal = all(torch.equal(every[0][name], other[name]) for other in every for name in every[0])
    kinds = {tensor.device.type for tensor in job.evaluator.network.state_dict().values()}
    reporter.log("info", f"equal on {len(every)} ranks, on {kinds.pop()}: {equal}")
    return outcome
