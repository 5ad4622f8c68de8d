"""Model Stock: how far the mean of N runs from one start is to be trusted, tensor by tensor (Jang et al. 2024).

    w = (1 − t)·w_0 + t·w̄,   t = N·cos θ / (1 + (N − 1)·cos θ)        (section 4.2, with the general N of its appendix)

θ is the mean angle between the displacements w_i − w_0 of two runs. With the unit displacements u_i their mean cosine is
(‖Σ u_i‖² − N) / (N·(N − 1)), so that one sum is kept and not N networks. Runs that agree (cos θ = 1) give the mean;
where they have nothing in common (cos θ ≤ 0) the start stays.
"""

import torch
from torch import Tensor

from wbar_averaging.running_mean import RunningMean
from wbar_averaging.sources import Source, named_tensors


def stock_ratio(cosine: float, runs: int) -> float:
    """Return t, the share of the mean, in [0, 1]. cosine: the mean one between the displacements of two of the runs."""
    if cosine <= 0:
        return 0.0
    return min(1.0, runs * cosine / (1 + (runs - 1) * cosine))


class ModelStock:
    """Takes the runs one by one, and makes their stock.

    start: w_0, a module or a dict of names to tensors; it is read again by `weights`, and must not change meanwhile.

    All sums are float64, whatever the runs' dtypes. Integer tensors are the latest run's.
    """

    def __init__(self, start: Source) -> None:
        self._start = {name: tensor.detach() for name, tensor in named_tensors(start).items()}
        self._mean = RunningMean(start, dtype=torch.float64)
        floating = {name: tensor for name, tensor in self._start.items() if tensor.is_floating_point()}
        self._directions = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in floating.items()}
        self._moved = dict.fromkeys(floating, 0)  # runs in which the tensor left its place

    @property
    def n(self) -> int:
        """How many runs were taken."""
        return self._mean.n

    @torch.no_grad()
    def update(self, run: Source) -> None:
        """Take one more run. Raises ValueError, before anything is changed, as `RunningMean.update`."""
        self._mean.update(run)
        tensors = named_tensors(run)
        for name, total in self._directions.items():
            away = tensors[name].detach().to(total.device, torch.float64) - self._start[name]
            length = away.norm()
            if length > 0:
                total.add_(away / length)
                self._moved[name] += 1

    def cosines(self) -> dict[str, float]:
        """Return the mean cosine between two runs' displacements, by tensor; 1 where no run moved it.

        Where only some moved it, the others' cosines count as 0. Raises ValueError for fewer than two runs.
        """
        if self.n < 2:
            raise ValueError(f"there is no angle between the displacements of {self.n} run: give two or more")
        pairs = self.n * (self.n - 1)
        return {
            name: (total.square().sum().item() - moved) / pairs if (moved := self._moved[name]) else 1.0
            for name, total in self._directions.items()
        }

    def ratios(self) -> dict[str, float]:
        """Return t by tensor, those of floating point. Raises ValueError for fewer than two runs."""
        return {name: stock_ratio(cosine, self.n) for name, cosine in self.cosines().items()}

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Return (1 − t)·w_0 + t·w̄ by name, float64; integer tensors as they are. Raises ValueError for fewer than two runs."""
        ratios, mean = self.ratios(), self._mean.mean(torch.float64)
        return {
            name: self._start[name].to(torch.float64).lerp(tensor, ratios[name]) if name in ratios else tensor
            for name, tensor in mean.items()
        }
