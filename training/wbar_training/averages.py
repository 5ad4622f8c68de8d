"""The members of the mean: all visits, the last few, those that help (greedy), or the best range of segments (window).

    greedy   w_n enters if  L(mean with w_n) ≤ L(mean)  on the selection split                     (Wortsman et al. 2022)
    window   the steps are cut into S segments with means m_s of n_s weights each; of all ranges [a, b] of segments the
             mean Σ n_s·m_s / Σ n_s is tried. Of those within one standard error of the lowest loss on the selection split
             (of the paired differences per image; Breiman et al. 1984, section 3.4.3) the longest is kept

All ranges cost S copies of the network: the mean of a range is a merge of segment means, not of the weights in it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from wbar.method import AutoMethod, CyclicSwa, Ema, Lawa, Plain, Swa, Training
from wbar.results import Candidate, Selection
from wbar.schedule import Schedule
from wbar_averaging import ExponentialMean, RunningMean, WindowMean

SEGMENTS = 6  # of a `window` over snapshots
Mean = RunningMean | ExponentialMean | WindowMean
# A mean's loss on each image of the selection split, BatchNorm recomputed: (N,) float64.
SelectionLosses = Callable[[Mean], Tensor]


class Average(ABC):
    """Takes the weights that the schedule visits, and makes the mean of the job from them at the end."""

    @abstractmethod
    def visit(self, model: nn.Module, snapshot: int) -> None:
        """Take the weights in.

        snapshot: the number of the snapshot that is due or comes next.
        """

    def select(self, losses_of: SelectionLosses) -> None:  # noqa: B027  # most averages have nothing to select at a snapshot
        """Select by the losses on the selection split, after a snapshot has been visited."""

    @property
    def candidates(self) -> int:
        """The number of means evaluated on the selection split, at snapshots and at the end: the estimate counts them."""
        return 0

    @property
    @abstractmethod
    def so_far(self) -> Mean:
        """The mean of all visits: the pull and the curve use it. Undefined before the first visit."""

    def finish(self, losses_of: SelectionLosses, log: Callable[[str], None]) -> tuple[Mean, Selection | None]:  # noqa: ARG002  # arguments of averages that select
        """Return the mean of the job, and the selection that made it."""
        return self.so_far, None

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


class GreedyAverage(Average):
    """A snapshot enters if the mean's loss does not rise; the first always does."""

    def __init__(self, model: nn.Module, snapshots: int) -> None:
        self._model, self._mean, self._candidate = model, _empty(model), _empty(model)
        self._snapshots = snapshots
        self._kept, self._best = list[int](), float("inf")
        self._latest = 0

    @property
    def candidates(self) -> int:
        return self._snapshots

    @property
    def so_far(self) -> RunningMean:
        return self._mean if self._mean.n else self._candidate

    def visit(self, model: nn.Module, snapshot: int) -> None:
        self._candidate = _empty(self._model)
        self._candidate.merge(self._mean)
        self._candidate.update(model)
        self._latest = snapshot

    def select(self, losses_of: SelectionLosses) -> None:
        loss = losses_of(self._candidate).mean().item()
        if loss <= self._best:
            self._mean, self._best = self._candidate, loss
            self._kept.append(self._latest)

    def finish(self, losses_of: SelectionLosses, log: Callable[[str], None]) -> tuple[Mean, Selection | None]:  # noqa: ARG002  # evaluated already
        log(f"snapshots {', '.join(map(str, self._kept))} of {self._latest} are in the mean")
        return self._mean, Selection(delivered="averaged", kept=self._kept, of=self._latest, loss=self._best)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self._mean.state_dict(), "kept": self._kept, "best": self._best, "latest": self._latest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean.load_state_dict(state["mean"])
        self._kept, self._best, self._latest = state["kept"], state["best"], state["latest"]


class WindowAverage(Average):
    """The best range of segments.

    segments: their number.
    first: the first segment that a range may begin with, from 0.
    last_from: the first segment that a range may end with, from 0.
    segment_of: the segment of a visit before snapshot n.
    """

    def __init__(
        self, model: nn.Module, segments: int, first: int, last_from: int, segment_of: Callable[[int], int]
    ) -> None:
        self._model, self._segments, self._segment_of = model, segments, segment_of
        self._first, self._last_from = first, last_from
        self._means: list[RunningMean] = []

    @property
    def candidates(self) -> int:
        count, first, earliest = self._segments, self._first, self._last_from
        return sum(count - max(begin, earliest) for begin in range(first, count))

    @property
    def so_far(self) -> RunningMean:
        return self._range(0, len(self._means) - 1)

    def visit(self, model: nn.Module, snapshot: int) -> None:
        while len(self._means) <= self._segment_of(snapshot):
            self._means.append(_empty(self._model))
        self._means[-1].update(model)

    def _range(self, begin: int, end: int) -> RunningMean:
        merged = _empty(self._model)
        for segment in self._means[begin : end + 1]:
            merged.merge(segment)
        return merged

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (begin, end), both included; where training ended early, one range may be all there is."""
        last = len(self._means) - 1
        first, earliest = min(self._first, last), min(self._last_from, last)
        for begin in range(first, last + 1):
            yield from ((begin, end) for end in range(max(begin, earliest), last + 1))

    def finish(self, losses_of: SelectionLosses, log: Callable[[str], None]) -> tuple[Mean, Selection | None]:
        losses = {ends: losses_of(self._range(*ends)) for ends in self._ranges()}
        lowest = min(losses.values(), key=lambda values: values.mean().item())
        begin, end = max(
            (ends for ends, values in losses.items() if _within_one_error(values, lowest)),
            key=lambda ends: (ends[1] - ends[0], -losses[ends].mean().item()),
        )
        candidates = [
            Candidate(first=a + 1, last=b + 1, loss=values.mean().item()) for (a, b), values in losses.items()
        ]
        best = losses[begin, end].mean().item()
        log(
            f"of {len(candidates)} ranges, segments {begin + 1} to {end + 1} of {len(self._means)} are the longest within one "
            f"standard error of the lowest loss on the selection split: {best:.5f}, lowest {lowest.mean().item():.5f}"
        )
        kept = list(range(begin + 1, end + 2))
        selection = Selection(delivered="averaged", kept=kept, of=len(self._means), loss=best, candidates=candidates)
        return self._range(begin, end), selection

    def state_dict(self) -> dict[str, Any]:
        return {"means": [mean.state_dict() for mean in self._means]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means = []
        for one in state["means"]:
            self._means.append(_empty(self._model))
            self._means[-1].load_state_dict(one)


def _within_one_error(losses: Tensor, lowest: Tensor) -> bool:
    difference = losses - lowest
    if len(difference) < 2:
        return True  # one image cannot tell them apart
    error: float = difference.std(unbiased=True).item() / len(difference) ** 0.5
    return bool(difference.mean().item() <= error)


def make_average(method: Training, schedule: Schedule, model: nn.Module) -> Average:
    """Make the average of a method.

    model: fixes names and shapes; it is the start if the start is to be counted.
    """
    if isinstance(method, Ema):
        # Every step: in float32, and not searched for NaN, which the loss would show.
        return UniformAverage(ExponentialMean(model, method.decay, method.decay_warmup, check_finite=False))
    if isinstance(method, Lawa | Plain):
        return UniformAverage(WindowMean(model, method.window if isinstance(method, Lawa) else 1))
    count = len(schedule.snapshots)
    if isinstance(method, AutoMethod):
        # In the first sixth the weights leave the start's basin; a range that ends in the first half has not settled.
        return WindowAverage(model, count, 1, ceil(count / 2) - 1, lambda snapshot: snapshot - 1)
    assert isinstance(method, CyclicSwa | Swa)
    if method.average == "greedy":
        return GreedyAverage(model, count)
    if method.average == "window":
        segments = min(SEGMENTS, count)
        return WindowAverage(model, segments, 0, 0, lambda snapshot: (snapshot - 1) * segments // count)
    mean = _empty(model)
    if isinstance(method, CyclicSwa) and method.include_start:
        mean.update(model)
    return UniformAverage(mean)


def mean_of(model: nn.Module) -> RunningMean:
    """Return the mean of one point, the model's weights."""
    mean = _empty(model)
    mean.update(model)
    return mean


def points_in(mean: Mean) -> int:
    """Return how many points are averaged in a mean: of a window only those that it still holds."""
    return min(mean.n, mean.window) if isinstance(mean, WindowMean) else mean.n


def _empty(model: nn.Module) -> RunningMean:
    return RunningMean(model, dtype=torch.float64)
