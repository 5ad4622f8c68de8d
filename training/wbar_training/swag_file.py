"""SWAG's Gaussian over the snapshots as a file, under the uploaded names: what draws new networks without asking for more.

    mean.NAME         w̄, and BatchNorm's statistics as they were averaged; the auxiliary tensors of the upload as they were
    variance.NAME     Σ of the weights, element by element
    deviations.NAME   D̂ of the weights, (K, *shape), oldest first
    batch_norm.NAME   BatchNorm's statistics, recomputed for each network that the job drew and measured, (draws, *shape)

float32 where the upload has floating-point numbers; equation 1 of Maddox et al. 2019 with K of the first dimension. The mean
is of all snapshots; a job that chose among them delivers another w̄.

Statistics belong to drawn weights, and to draw needs no images: so those of the measured draws are kept, and whoever draws
with the job's seed has the very networks that were measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from wbar.spec import Network
from wbar_averaging import SWAG
from wbar_training.distributed.ranks import Ranks
from wbar_training.draws import key
from wbar_training.networks import architectures
from wbar_training.setup import Setup

PARTS = ("mean", "variance", "deviations", "batch_norm")


def draw_seed(seed: int) -> int:
    """Return the seed of a job's draws. seed: the job's."""
    return key(seed, "swag", 0)


def statistics_of(model: nn.Module, swag: SWAG) -> dict[str, Tensor]:
    """Return copies of what of a network is not drawn and has floating-point numbers: BatchNorm's statistics."""
    drawn = swag.variance()
    own = {name: one for name, one in model.state_dict().items() if one.is_floating_point() and name not in drawn}
    return {name: one.detach().float().cpu().clone() for name, one in own.items()}


def write_swag(setup: Setup, swag: SWAG, statistics: Sequence[Mapping[str, Tensor]] = ()) -> Path | None:
    """Write the file; None where another rank writes it. Raises ValueError for fewer than two snapshots.

    statistics: of `statistics_of` each network that was drawn and measured, in order.
    """
    parts = {"mean": swag.mean(), "variance": swag.variance(), "deviations": swag.deviations()}
    if not Ranks.here().leads:
        return None
    tensors = dict[str, Tensor]()
    for name, uploaded in setup.writer.uploaded().items():
        for part, values in parts.items():
            if uploaded.own in values:
                value = values[uploaded.own].detach().cpu()
                tensors[f"{part}.{name}"] = value.float() if value.is_floating_point() else value
        if statistics and uploaded.own in statistics[0]:
            tensors[f"batch_norm.{name}"] = torch.stack([one[uploaded.own] for one in statistics])
        if f"mean.{name}" not in tensors:
            tensors[f"mean.{name}"] = uploaded.tensor
    path = setup.writer.scratch / "swag.safetensors"
    setup.writer.write_tensors(path, tensors, {"wbar.snapshots": str(swag.n), "wbar.swag_columns": str(swag.columns)})
    return path


class DrawnNetworks:
    """The networks that a job drew and measured, drawn again from its file.

    tensors: of the file, with its prefix before the network's own names cut off. seed: the job's.

    Raises ValueError for a file without the statistics of the draws.
    """

    def __init__(self, network: Network, tensors: Mapping[str, Tensor], seed: int, draws: int) -> None:
        parts = {part: _own(network, tensors, part) for part in PARTS}
        self.model, self._seed, self._draws = architectures.load(network, parts["mean"])[0].eval(), seed, draws
        columns = next(iter(parts["deviations"].values())).shape[0]
        self._swag = SWAG(self.model, rank=columns)
        state = self._swag.state_dict()
        n = columns  # the Gaussian is told by its mean, Σ and D̂; more points than columns change none of them
        own = self.model.state_dict()
        state["mean"] = {name: own[name] for name in state["mean"]}
        state["squares"] = {name: parts["variance"][name] * n for name in state["squares"]}
        state["deviations"] = [
            {name: parts["deviations"][name][k] for name in state["squares"]} for k in range(columns)
        ]
        self._swag.load_state_dict(state | {"n": n})
        self._statistics = parts["batch_norm"]
        lacking = statistics_of(self.model, self._swag).keys() - self._statistics.keys()
        if lacking or any(len(one) < draws for one in self._statistics.values()):
            raise ValueError(
                "its file has no BatchNorm statistics of the draws: they could not be measured, or it is older"
            )

    def __iter__(self) -> Iterator[nn.Module]:
        """Yield the networks, in eval mode: one module, with the next weights each time."""
        generator = torch.Generator().manual_seed(draw_seed(self._seed))
        for draw in range(self._draws):
            state = self._swag.sample(generator)
            self.model.load_state_dict(state | {name: one[draw] for name, one in self._statistics.items()})
            yield self.model


def _own(network: Network, tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return one part of the file by the network's own names."""
    found = {name.removeprefix(f"{part}."): one for name, one in tensors.items() if name.startswith(f"{part}.")}
    return {own: found[name] for name, own in architectures.own_names(network, found).items()}
