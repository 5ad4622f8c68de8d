"""A meeting of replicas: after a snapshot, each goes on from the mean of all their weights, or nearer to it.

    w̄ = (w_1 + … + w_k) / k                 float64, in the order of the replicas, whichever came first
    w_i ← α·w_i + (1 − α)·w̄                 rounded once; α = 0: all go on from w̄      (PAPA, Jolicoeur-Martineau et al. 2023)

The w_i are the snapshots, kept in float32 at least, so that nothing is rounded in between. Each replica makes the mean by
itself, of the same files in the same order: there is no one to wait for but them. Tracked BatchNorm statistics are moved as
the weights are; counters, the optimizer's momentum, the loss scale, the order of the data and every draw are the replica's own.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from wbar.results import MeetingResult
from wbar.spec import Meetings
from wbar_averaging import RunningMean
from wbar_training.reporter import MeetingReached
from wbar_training.resume import Results
from wbar_training.setup import Setup
from wbar_training.workspace import Workspace


def due(meetings: Meetings | None, results: Results, step: int) -> int | None:
    """Return the snapshot after which the replicas meet now, before the step that follows it; None: they do not."""
    n = len(results.snapshots)
    if meetings is None or not meetings.after(n) or results.snapshot_steps[-1] != step:
        return None
    return n


@torch.no_grad()
def meet(setup: Setup, workspace: Workspace, n: int, tick: Callable[[], None]) -> MeetingResult:
    """Move the model to where it goes on after snapshot n.

    tick: called after each file that is read.

    Raises MeetingReached where the others' snapshots have not been fetched: they may still be at work.
    """
    meetings = setup.spec.meetings
    assert meetings is not None
    paths = [workspace.met(n, replica) for replica in range(1, len(meetings.replicas) + 1)]
    if not all(path.exists() for path in paths):
        raise MeetingReached(n)

    def weights(path: Path) -> dict[str, Tensor]:
        tick()
        return {name: one.double() for name, one in setup.writer.snapshot(path).items() if one.is_floating_point()}

    mean = RunningMean(weights(paths[0]), dtype=torch.float64)
    for path in paths:
        mean.update(weights(path))
    common = mean.mean(torch.float64)
    parameters = {name for name, _ in setup.model.named_parameters()} & common.keys()
    apart = [_length(weights(path), parameters, common) for path in paths]
    own = setup.writer.snapshot(paths[meetings.number - 1])
    for name, tensor in setup.model.state_dict().items():
        if name in common:
            tensor.copy_(common[name] + meetings.keep * (own[name].double() - common[name]))
    return MeetingResult(n=n, spread=sum(apart) / len(apart), norm=_length(common, parameters))


def _length(tensors: dict[str, Tensor], names: set[str], origin: dict[str, Tensor] | None = None) -> float:
    """Return the Euclidean length of the named tensors together, from the origin's."""
    squares = [
        (tensors[name] - (origin[name] if origin is not None else 0.0)).square().sum().item() for name in sorted(names)
    ]
    return float(sum(squares) ** 0.5)
