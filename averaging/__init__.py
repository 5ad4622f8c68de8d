"""Weight averaging: running means, the pull toward them, cyclic rates, BatchNorm statistics. Tensors in, tensors out.

Names are loaded lazily, so that what needs no torch can be used without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from averaging.batch_norm import has_batch_norm, recompute_batch_norm
    from averaging.cyclic_lr import CyclicSchedule, Position
    from averaging.pull import add_pull_gradient, distance, pull_loss
    from averaging.running_mean import RunningMean
    from averaging.safetensors_file import InvalidSafetensors, read_header, write_safetensors

_HOME = {
    "has_batch_norm": "batch_norm",
    "recompute_batch_norm": "batch_norm",
    "CyclicSchedule": "cyclic_lr",
    "Position": "cyclic_lr",
    "add_pull_gradient": "pull",
    "distance": "pull",
    "pull_loss": "pull",
    "RunningMean": "running_mean",
    "InvalidSafetensors": "safetensors_file",
    "read_header": "safetensors_file",
    "write_safetensors": "safetensors_file",
}

__all__ = [  # the keys of _HOME, spelled out for readers and type checkers
    "CyclicSchedule",
    "InvalidSafetensors",
    "Position",
    "RunningMean",
    "add_pull_gradient",
    "distance",
    "has_batch_norm",
    "pull_loss",
    "read_header",
    "recompute_batch_norm",
    "write_safetensors",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'averaging' has no attribute {name!r}")
    return getattr(import_module(f"averaging.{_HOME[name]}"), name)
