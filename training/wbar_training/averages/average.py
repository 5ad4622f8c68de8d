"""The average of a job: takes the weights that the schedule visits, and makes the mean from them at the end."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wbar.choices import Selection
from wbar_averaging import ExponentialMean, RunningMean, WindowMean
from wbar_averaging.sources import Source
from wbar_training.averages.choice import ChoiceLimits, Effort

Mean = RunningMean | ExponentialMean | WindowMean


@dataclass(frozen=True)
class Evaluated:
    """An evaluation on images of the selection split.

    values: what `select_by` compares, one per image, float64; lower is better.
    loss: the mean loss, in nats.
    """

    values: Tensor
    loss: float


class CandidateEvaluator(Protocol):
    """Evaluates means on the selection split, for averages that select."""

    @property
    def limits(self) -> ChoiceLimits:
        """The means of a choice: images, and forward passes."""

    def losses(self, mean: Mean) -> Tensor:
        """Return a mean's loss on each image, BatchNorm recomputed, (N,) float64."""

    def values(self, mean: Mean, effort: Effort, own_statistics: bool) -> Evaluated | None:
        """Evaluate a mean on `effort.images` images; None where its outputs are not finite.

        own_statistics: BatchNorm's are those that the mean has, and not recomputed.
        """

    def halves(self, images: int) -> list[Tensor]:
        """Return the indices of stratified halves of the images that an evaluation on so many of them uses."""

    def start(self) -> Mapping[str, Tensor]:
        """Return the start's whole state dict."""

    def log(self, message: str) -> None:
        """Say something in the job's log."""


@dataclass(frozen=True)
class Finished:
    """The mean of a job.

    points: how many weights are averaged in it.
    selection: the choices that made it.
    own_statistics: BatchNorm's are those that the mean has, and not recomputed.
    """

    mean: Mean
    points: int
    selection: Selection | None = None
    own_statistics: bool = False


class Average(ABC):
    """Takes the weights that the schedule visits, and makes the mean of the job from them at the end."""

    @abstractmethod
    def visit(self, model: nn.Module, snapshot: int) -> None:
        """Take the weights in.

        snapshot: the number of the snapshot that is due or comes next.
        """

    def select(self, evaluator: CandidateEvaluator) -> None:  # noqa: B027  # most averages have nothing to select at a snapshot
        """Select by the losses on the selection split, after a snapshot has been visited."""

    def selection_forwards(self, limits: ChoiceLimits) -> int:  # noqa: ARG002  # of averages that select
        """Return the forward passes of one image that all selection takes, at snapshots and at the end."""
        return 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing that is visited from now on would enter the mean, so that training can end."""
        return False

    @property
    @abstractmethod
    def so_far(self) -> Mean:
        """The mean of all visits: the pull and the curve use it. Undefined before the first visit."""

    def finish(self, evaluator: CandidateEvaluator) -> Finished:  # noqa: ARG002  # of averages that select
        """Return the mean of the job, and the selection that made it."""
        mean = self.so_far
        # Of a window only the points that it still holds.
        return Finished(mean, min(mean.n, mean.window) if isinstance(mean, WindowMean) else mean.n)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...
    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class UniformAverage(Average):
    """One mean, and every visit enters it."""

    def __init__(self, mean: Mean) -> None:
        self._mean = mean

    @property
    def so_far(self) -> Mean:
        return self._mean

    def visit(self, model: nn.Module, snapshot: int) -> None:  # noqa: ARG002  # the number does not matter
        self._mean.update(model)

    def state_dict(self) -> dict[str, Any]:
        return self._mean.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean.load_state_dict(state)


def mean_of(point: Source, model: nn.Module | None = None) -> RunningMean:
    """Return the mean of one point. model: fixes names and shapes, where the point is not a module."""
    mean = empty_like(point if model is None else model)
    mean.update(point)
    return mean


def merged(model: nn.Module, means: Iterable[RunningMean]) -> RunningMean:
    """Return the mean of all the points of the means. model: fixes names and shapes."""
    mean = empty_like(model)
    for one in means:
        mean.merge(one)
    return mean


def on_line(model: nn.Module, start: Mapping[str, Tensor], mean: Mean, alpha: float) -> RunningMean:
    """Return (1 − α)·start + α·mean, α in [0, 1]; integer tensors are the mean's, but at 0. model: fixes names and shapes."""
    point = empty_like(model)
    if alpha < 1:
        point.update(start, 1 - alpha)
    if alpha > 0:
        point.update(mean.mean(torch.float64), alpha)
    return point


def empty_like(model: Source) -> RunningMean:
    """Return a mean of no points, float64. model: fixes names and shapes."""
    return RunningMean(model, dtype=torch.float64)
