"""The mean of a replica as the sums that it was made of, so that means of several replicas are joined without a rounding.

    s = Σ w_i  in float64, exact for float32 weights; n points; w̄ = s / n

A mean that is no plain mean of points (exponential, or of a window) is one point: its float64 values, with weight 1.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from wbar_averaging import RunningMean, write_safetensors
from wbar_training.averages.average import Finished, empty_like
from wbar_training.networks.tensors import read_tensors

POINTS, WEIGHT = "points", "total_weight"


def write(path: Path, finished: Finished) -> Path:
    """Write the sums of a finished mean; returns the path."""
    mean = finished.mean
    if isinstance(mean, RunningMean) and mean.dtype is torch.float64:
        state = mean.state_dict()
        sums, weight = state["sum"], float(state["total_weight"])
    else:
        sums, weight = mean.mean(torch.float64), 1.0
    tensors = {name: tensor.detach().cpu() for name, tensor in sums.items()}
    write_safetensors(path, tensors, {POINTS: str(finished.points), WEIGHT: weight.hex()})
    return path


def read(path: Path, model: nn.Module) -> RunningMean:
    """Return the mean whose sums lie at `path`. model: fixes names and shapes. Raises ValueError where they differ."""
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
    mean, device = empty_like(model), next(model.parameters()).device
    points, weight = int(said[POINTS]), float.fromhex(said[WEIGHT])
    sums = {name: tensor.to(device) for name, tensor in read_tensors(path).items()}
    sums = {
        name: sums[name] for name in mean.state_dict()["sum"] if name in sums
    }  # a shared tensor may stand there twice
    state = {"n": points, "sum": sums, "correction": None, "new_weight": 0.0, "since_fold": 0, WEIGHT: weight}
    mean.load_state_dict(state)
    return mean
