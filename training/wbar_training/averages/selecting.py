"""Averages that select among snapshots: those that help (greedy), or the best range of segments (window).

    greedy   w_n enters if  L(mean with w_n) ≤ L(mean)  on the selection split                     (Wortsman et al. 2022)
    window   the snapshots are cut into S segments with means m_s of n_s weights each; of all ranges [a, b] of segments the
             mean Σ n_s·m_s / Σ n_s is tried. Of those within one standard error of the lowest loss on the selection split
             the longest is kept; then the line to it from the start is tried, (1 − α)·w_0 + α·w̄

All ranges cost S copies of the network: the mean of a range is a merge of segment means, not of the weights in it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from wbar.choices import Candidate, Selection
from wbar_averaging import RunningMean
from wbar_training.averages.average import Average, CandidateEvaluator, Finished, empty_like, merged, on_line
from wbar_training.averages.choice import ALPHAS, ChoiceLimits, alpha_of, longest_near_tie


class GreedyAverage(Average):
    """A snapshot enters if the mean's loss does not rise; the first always does."""

    def __init__(self, model: nn.Module, snapshots: int) -> None:
        self._model, self._mean, self._candidate = model, empty_like(model), empty_like(model)
        self._snapshots = snapshots
        self._kept, self._best = list[int](), float("inf")
        self._latest = 0

    def selection_forwards(self, limits: ChoiceLimits) -> int:
        return self._snapshots * limits.one_mean

    @property
    def so_far(self) -> RunningMean:
        return self._mean if self._mean.n else self._candidate

    def visit(self, model: nn.Module, snapshot: int) -> None:
        self._candidate = empty_like(self._model)
        self._candidate.merge(self._mean)
        self._candidate.update(model)
        self._latest = snapshot

    def select(self, evaluator: CandidateEvaluator) -> None:
        loss = evaluator.losses(self._candidate).mean().item()
        if loss <= self._best:
            self._mean, self._best = self._candidate, loss
            self._kept.append(self._latest)

    def finish(self, evaluator: CandidateEvaluator) -> Finished:
        evaluator.log(f"snapshots {', '.join(map(str, self._kept))} of {self._latest} are in the mean")
        selection = Selection(delivered="averaged", kept=self._kept, of=self._latest, loss=self._best)
        return Finished(self._mean, self._mean.n, selection)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self._mean.state_dict(), "kept": self._kept, "best": self._best, "latest": self._latest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean.load_state_dict(state["mean"])
        self._kept, self._best, self._latest = state["kept"], state["best"], state["latest"]


class WindowAverage(Average):
    """The best range of segments.

    segments: their number.
    segment_of: the segment of a visit before snapshot n.
    alphas: points of the line from the start to it that are tried.
    """

    def __init__(
        self,
        model: nn.Module,
        segments: int,
        segment_of: Callable[[int], int],
        alphas: Sequence[float] = ALPHAS,
    ) -> None:
        self._model, self._segments, self._segment_of, self._alphas = model, segments, segment_of, alphas
        self._means: list[RunningMean] = []

    def selection_forwards(self, limits: ChoiceLimits) -> int:
        return (self._segments * (self._segments + 1) // 2 + len(self._alphas)) * limits.one_mean

    @property
    def so_far(self) -> RunningMean:
        return self._range(0, len(self._means) - 1)

    def visit(self, model: nn.Module, snapshot: int) -> None:
        while len(self._means) <= self._segment_of(snapshot):
            self._means.append(empty_like(self._model))
        self._means[-1].update(model)

    def _range(self, begin: int, end: int) -> RunningMean:
        return merged(self._model, self._means[begin : end + 1])

    def finish(self, evaluator: CandidateEvaluator) -> Finished:
        count = len(self._means)
        ranges = [(begin, end) for begin in range(count) for end in range(begin, count)]
        losses = [evaluator.losses(self._range(*ends)) for ends in ranges]
        begin, end = ranges[longest_near_tie(losses, [end - begin for begin, end in ranges])]
        mean, start = self._range(begin, end), evaluator.start()
        points = {1.0: mean} | {alpha: on_line(self._model, start, mean, alpha) for alpha in self._alphas}
        on_the_way = {alpha: evaluator.losses(point) for alpha, point in points.items() if alpha < 1}
        line = {1.0: losses[ranges.index((begin, end))]} | on_the_way
        alpha = alpha_of(line)
        tried = [*zip(ranges, losses, [1.0] * len(ranges), strict=True)]
        tried += [((begin, end), values, each) for each, values in on_the_way.items()]
        candidates = [
            Candidate(first=a + 1, last=b + 1, alpha=each, loss=values.mean().item()) for (a, b), values, each in tried
        ]
        loss = line[alpha].mean().item()
        evaluator.log(
            f"of {len(ranges)} ranges, segments {begin + 1} to {end + 1} of {count} are the longest within one "
            f"standard error of the lowest loss on the selection split: {loss:.5f} at α = {alpha:g} of the way from the "
            f"start, lowest {min(one.loss for one in candidates):.5f}"
        )
        selection = Selection(
            delivered="averaged",
            kept=list(range(begin + 1, end + 2)),
            of=count,
            loss=loss,
            chosen=next(one for one in candidates if (one.first, one.last, one.alpha) == (begin + 1, end + 1, alpha)),
            candidates=candidates,
        )
        return Finished(points[alpha], mean.n, selection)

    def state_dict(self) -> dict[str, Any]:
        return {"means": [mean.state_dict() for mean in self._means]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means = []
        for one in state["means"]:
            self._means.append(empty_like(self._model))
            self._means[-1].load_state_dict(one)
