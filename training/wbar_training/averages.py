"""What the mean is made of: everything, the last few, what helps (greedy), or the best stretch of the way (window).

    greedy   w_n enters if  L(mean with w_n) ≤ L(mean)  on the images set aside for choosing       (Wortsman et al. 2022)
    window   the way is cut into S segments with means m_s of n_s weights each; of all stretches [a, b] the mean
             Σ n_s·m_s / Σ n_s is tried. Of those within one standard error of the lowest loss on those images (of the
             paired differences per image; Breiman et al. 1984, section 3.4.3) the longest is kept

All stretches cost S copies of the network: a stretch is a merge of segment means, not of the weights it went through.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from wbar.jobs import Candidate, Choice
from wbar.method import AutoMethod, CyclicSwa, Ema, Lawa, Plain, Swa, Training
from wbar_averaging import ExponentialMean, RunningMean, WindowMean
from wbar_training.courses import Course

SEGMENTS = 6  # of a `window` over snapshots
Mean = RunningMean | ExponentialMean | WindowMean
# A mean's loss on each image set aside for choosing, BatchNorm recomputed: (N,) float64.
Judge = Callable[[Mean], Tensor]


class Average(ABC):
    """Takes the weights that the course visits, and says at the end what the mean of the job is."""

    @abstractmethod
    def visit(self, model: nn.Module, snapshot: int) -> None:
        """Take the weights in; snapshot: the number of the one that is due or comes next."""

    def judge(self, loss: Judge) -> None:  # noqa: B027  # most averages have nothing to decide at a snapshot
        """A snapshot has been visited: decide what depends on held-out images."""

    @property
    def candidates(self) -> int:
        """How many means will be judged, at snapshots and at the end: what the estimate of the time left counts."""
        return 0

    @property
    @abstractmethod
    def so_far(self) -> Mean:
        """The mean of what was visited: what pulls, and what the curve shows. Undefined before the first visit."""

    def finish(self, loss: Judge, log: Callable[[str], None]) -> tuple[Mean, Choice | None]:  # noqa: ARG002  # for those that choose
        """The mean of the job, and what was chosen on the way to it."""
        return self.so_far, None

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...
    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Plainly(Average):
    """One mean, and every visit enters it."""

    def __init__(self, mean: Mean) -> None:
        self._mean = mean

    @property
    def so_far(self) -> Mean:
        return self._mean

    def visit(self, model: nn.Module, snapshot: int) -> None:  # noqa: ARG002  # of whatever number
        self._mean.update(model)

    def state_dict(self) -> dict[str, Any]:
        return self._mean.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean.load_state_dict(state)


class Greedily(Average):
    """A snapshot enters if the mean's loss does not rise; the first always does."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._mean, self._candidate = model, _empty(model), _empty(model)
        self._kept, self._best = list[int](), float("inf")
        self._latest = 0

    @property
    def so_far(self) -> RunningMean:
        return self._mean if self._mean.n else self._candidate

    def visit(self, model: nn.Module, snapshot: int) -> None:
        self._candidate = _empty(self._model)
        self._candidate.merge(self._mean)
        self._candidate.update(model)
        self._latest = snapshot

    def judge(self, loss: Judge) -> None:
        found = loss(self._candidate).mean().item()
        if found <= self._best:
            self._mean, self._best = self._candidate, found
            self._kept.append(self._latest)

    def finish(self, loss: Judge, log: Callable[[str], None]) -> tuple[Mean, Choice | None]:  # noqa: ARG002  # judged already
        log(f"snapshots {', '.join(map(str, self._kept))} of {self._latest} are in the mean")
        return self._mean, Choice(kept=self._kept, of=self._latest, loss=self._best)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self._mean.state_dict(), "kept": self._kept, "best": self._best, "latest": self._latest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean.load_state_dict(state["mean"])
        self._kept, self._best, self._latest = state["kept"], state["best"], state["latest"]


class Windowed(Average):
    """The best stretch of the way. segments: how many; first, last_from: the first segment that a stretch may begin with,
    and the first that it may end with, both from 0; segment_of: the segment of what is visited before snapshot n."""

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
        return self._stretch(0, len(self._means) - 1)

    def visit(self, model: nn.Module, snapshot: int) -> None:
        while len(self._means) <= self._segment_of(snapshot):
            self._means.append(_empty(self._model))
        self._means[-1].update(model)

    def _stretch(self, begin: int, end: int) -> RunningMean:
        merged = _empty(self._model)
        for segment in self._means[begin : end + 1]:
            merged.merge(segment)
        return merged

    def _stretches(self) -> Iterator[tuple[int, int]]:
        """(begin, end), both included. Where the way ended early, what there is may be all that can be chosen from."""
        last = len(self._means) - 1
        first, earliest = min(self._first, last), min(self._last_from, last)
        for begin in range(first, last + 1):
            yield from ((begin, end) for end in range(max(begin, earliest), last + 1))

    def finish(self, loss: Judge, log: Callable[[str], None]) -> tuple[Mean, Choice | None]:
        losses = {stretch: loss(self._stretch(*stretch)) for stretch in self._stretches()}
        lowest = min(losses.values(), key=lambda found: found.mean().item())
        begin, end = max(
            (stretch for stretch, found in losses.items() if _within_one_error(found, lowest)),
            key=lambda stretch: (stretch[1] - stretch[0], -losses[stretch].mean().item()),
        )
        tried = [Candidate(first=a + 1, last=b + 1, loss=found.mean().item()) for (a, b), found in losses.items()]
        best = next(candidate for candidate in tried if (candidate.first, candidate.last) == (begin + 1, end + 1))
        log(
            f"of {len(tried)} stretches, segments {best.first} to {best.last} of {len(self._means)} are the longest within one "
            f"standard error of the lowest loss on the images set aside for choosing: {best.loss:.5f}, lowest "
            f"{lowest.mean().item():.5f}"
        )
        kept = list(range(best.first, best.last + 1))
        choice = Choice(kept=kept, of=len(self._means), loss=best.loss, candidates=tried)
        return self._stretch(best.first - 1, best.last - 1), choice

    def state_dict(self) -> dict[str, Any]:
        return {"means": [mean.state_dict() for mean in self._means]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means = []
        for one in state["means"]:
            self._means.append(_empty(self._model))
            self._means[-1].load_state_dict(one)


def _within_one_error(losses: Tensor, lowest: Tensor) -> bool:
    difference = losses - lowest
    error = difference.std(unbiased=True).item() / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return difference.mean().item() <= error


def make_average(method: Training, course: Course, model: nn.Module) -> Average:
    """The average of a method; model: fixes names and shapes, and is the start if the start is to be counted."""
    if isinstance(method, Ema):
        # Every step: in float32, and not looked through for NaN, which the loss would show.
        return Plainly(ExponentialMean(model, method.decay, method.decay_warmup, check_finite=False))
    if isinstance(method, Lawa | Plain):
        return Plainly(WindowMean(model, method.window if isinstance(method, Lawa) else 1))
    count = len(course.snapshots)
    if isinstance(method, AutoMethod):
        # The first sixth is on its way out of the start's basin; a stretch that ends in the first half has not settled.
        return Windowed(model, count, 1, ceil(count / 2) - 1, lambda snapshot: snapshot - 1)
    assert isinstance(method, CyclicSwa | Swa)
    if method.average == "greedy":
        return Greedily(model)
    if method.average == "window":
        segments = min(SEGMENTS, count)
        return Windowed(model, segments, 0, 0, lambda snapshot: (snapshot - 1) * segments // count)
    mean = _empty(model)
    if isinstance(method, CyclicSwa) and method.include_start:
        mean.update(model)
    return Plainly(mean)


def _empty(model: nn.Module) -> RunningMean:
    return RunningMean(model, dtype=torch.float64)
