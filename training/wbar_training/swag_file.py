"""SWAG's Gaussian over the snapshots as a file, under the uploaded names: what draws new networks without asking for more.

    mean.NAME         w̄, and BatchNorm's statistics as they were averaged; the auxiliary tensors of the upload as they were
    variance.NAME     Σ of the weights, element by element
    deviations.NAME   D̂ of the weights, (K, *shape), oldest first

float32 where the upload has floating-point numbers; equation 1 of Maddox et al. 2019 with K of the first dimension. The mean
is of all snapshots; a job that chose among them delivers another w̄.
"""

from pathlib import Path

from torch import Tensor

from wbar_averaging import SWAG
from wbar_training.distributed.ranks import Ranks
from wbar_training.setup import Setup


def write_swag(setup: Setup, swag: SWAG) -> Path | None:
    """Write the file; None where another rank writes it. Raises ValueError for fewer than two snapshots."""
    parts = {"mean": swag.mean(), "variance": swag.variance(), "deviations": swag.deviations()}
    if not Ranks.here().leads:
        return None
    tensors = dict[str, Tensor]()
    for name, uploaded in setup.writer.uploaded().items():
        for part, values in parts.items():
            if uploaded.own in values:
                value = values[uploaded.own].detach().cpu()
                tensors[f"{part}.{name}"] = value.float() if value.is_floating_point() else value
        if f"mean.{name}" not in tensors:
            tensors[f"mean.{name}"] = uploaded.tensor
    path = setup.writer.scratch / "swag.safetensors"
    setup.writer.write_tensors(path, tensors, {"wbar.snapshots": str(swag.n), "wbar.swag_columns": str(swag.columns)})
    return path
