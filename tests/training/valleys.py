"""A evaluator of networks with one weight, whose losses are a written-out function of it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from wbar_training.averages.average import Evaluated, Mean
from wbar_training.averages.choice import ChoiceLimits, Effort, stratified_halves


class Valley:
    """Evaluates by losses_of(weight), (N,), one loss per image of the selection split."""

    def __init__(
        self, losses_of: Callable[[float], Tensor], limits: ChoiceLimits | None = None, start: float = 0.0
    ) -> None:
        self.losses_of, self.begin = losses_of, start
        self.limits = limits or ChoiceLimits(selection=2, recomputed=0, forwards=0)
        self.logs = list[str]()
        self.forwards = 0
        self.with_own_statistics = list[float]()

    def losses(self, mean: Mean) -> Tensor:
        self.forwards += self.limits.one_mean
        return self.losses_of(weight(mean))

    def values(self, mean: Mean, effort: Effort, own_statistics: bool) -> Evaluated | None:
        self.forwards += effort.images + (0 if own_statistics else effort.recomputed)
        if own_statistics:
            self.with_own_statistics.append(weight(mean))
        values = self.losses_of(weight(mean))[: effort.images]
        if not bool(torch.isfinite(values).all()):
            return None
        return Evaluated(values, values.mean().item())

    def halves(self, images: int) -> list[Tensor]:
        return stratified_halves(torch.arange(images) % 3, torch.Generator().manual_seed(0))

    def start(self) -> Mapping[str, Tensor]:
        return {"weight": torch.full((1, 1), self.begin)}

    def log(self, message: str) -> None:
        self.logs.append(message)


def weight(mean: Mean) -> float:
    """The weight of a mean of such networks."""
    return mean.mean(torch.float64)["weight"].item()
