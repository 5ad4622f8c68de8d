"""Weight averaging: running means, the pull toward them, cyclic rates, BatchNorm statistics. Tensors in, tensors out.

Names are loaded lazily, so that what needs no torch can be used without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wbar_averaging.batch_norm import Recomputed, has_batch_norm, recompute_batch_norm
    from wbar_averaging.cyclic_lr import CyclicSchedule, PhaseRate, Position
    from wbar_averaging.drop_in import (
        SWALR,
        AveragedModel,
        get_ema_avg_fn,
        get_ema_multi_avg_fn,
        get_swa_avg_fn,
        get_swa_multi_avg_fn,
        update_bn,
    )
    from wbar_averaging.flatness import (
        Distances,
        Epoch,
        Sharpness,
        TopEigenvalue,
        Trajectory,
        distances,
        hessian_vector_product,
        sharpness,
        top_eigenvalue,
    )
    from wbar_averaging.loss_surface import (
        Line,
        Plane,
        Surface,
        filter_normalized_direction,
        interpolate,
        line,
        plane,
        surface,
    )
    from wbar_averaging.pull import (
        add_folded_pull_gradient,
        add_pull_gradient,
        can_fold_pull,
        distance,
        fold_pull,
        pull_loss,
    )
    from wbar_averaging.running_mean import ExponentialMean, RunningMean, WindowMean
    from wbar_averaging.safetensors_file import InvalidSafetensors, read_header, write_safetensors
    from wbar_averaging.schedulers import CyclicScheduleLR
    from wbar_averaging.soup import average_checkpoints, greedy_soup
    from wbar_averaging.sources import named_tensors
    from wbar_averaging.swag import SWAG, bayesian_average

_NAMES = {
    "sources": ["named_tensors"],
    "running_mean": ["RunningMean", "ExponentialMean", "WindowMean"],
    "drop_in": [
        "AveragedModel",
        "SWALR",
        "update_bn",
        "get_ema_avg_fn",
        "get_ema_multi_avg_fn",
        "get_swa_avg_fn",
        "get_swa_multi_avg_fn",
    ],
    "pull": ["add_pull_gradient", "add_folded_pull_gradient", "can_fold_pull", "fold_pull", "distance", "pull_loss"],
    "cyclic_lr": ["CyclicSchedule", "PhaseRate", "Position"],
    "schedulers": ["CyclicScheduleLR"],
    "batch_norm": ["Recomputed", "has_batch_norm", "recompute_batch_norm"],
    "safetensors_file": ["InvalidSafetensors", "read_header", "write_safetensors"],
    "flatness": [
        "Trajectory",
        "Epoch",
        "Distances",
        "distances",
        "Sharpness",
        "sharpness",
        "TopEigenvalue",
        "top_eigenvalue",
        "hessian_vector_product",
    ],
    "loss_surface": [
        "Line",
        "Surface",
        "Plane",
        "interpolate",
        "line",
        "surface",
        "plane",
        "filter_normalized_direction",
    ],
    "swag": ["SWAG", "bayesian_average"],
    "soup": ["Soup", "average_checkpoints", "greedy_soup"],
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [  # the keys of _HOME, spelled out for readers and type checkers
    "SWAG",
    "SWALR",
    "AveragedModel",
    "CyclicSchedule",
    "CyclicScheduleLR",
    "Distances",
    "Epoch",
    "ExponentialMean",
    "InvalidSafetensors",
    "Line",
    "PhaseRate",
    "Plane",
    "Position",
    "Recomputed",
    "RunningMean",
    "Sharpness",
    "Surface",
    "TopEigenvalue",
    "Trajectory",
    "WindowMean",
    "add_folded_pull_gradient",
    "add_pull_gradient",
    "average_checkpoints",
    "bayesian_average",
    "can_fold_pull",
    "distance",
    "distances",
    "filter_normalized_direction",
    "fold_pull",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "greedy_soup",
    "has_batch_norm",
    "hessian_vector_product",
    "interpolate",
    "line",
    "named_tensors",
    "plane",
    "pull_loss",
    "read_header",
    "recompute_batch_norm",
    "sharpness",
    "surface",
    "top_eigenvalue",
    "update_bn",
    "write_safetensors",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'averaging' has no attribute {name!r}")
    return getattr(import_module(f"wbar_averaging.{_HOME[name]}"), name)
