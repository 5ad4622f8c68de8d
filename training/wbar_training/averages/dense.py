"""Dense averaging in a valley of the held-out loss: the mean of every step from its first minimum until it has risen (SWAD).

    begin   s, the first evaluation with  E_s = min(E_s, …, E_{s+N_s−1});  l = r · (E_s + … + E_{s+N_s−1}) / N_s
    end     e, the last evaluation before N_e in a row with  l < min(E_{e+1}, …, E_{e+N_e})
    mean    of w after every step from evaluation s to evaluation e, both included         (Cha et al. 2021, algorithm 1)

E_i is the loss of w itself, not of the mean. Without a minimum every step is averaged, without an end all from s on. Kept
are at most N_s + N_e + 2 copies of the network: the steps between two evaluations are one mean.
"""

from typing import Any

import torch
from torch import nn

from wbar.choices import Selection, Valley
from wbar.method import Swad
from wbar_averaging import RunningMean
from wbar_training.averages.average import Average, CandidateEvaluator, Finished, empty_like, mean_of, merged
from wbar_training.averages.choice import ChoiceLimits


class DenseAverage(Average):
    """The mean of every step in the valley.

    model: the network that walks; its weights are evaluated at every snapshot.
    evaluations: how many are planned.
    """

    def __init__(self, model: nn.Module, options: Swad, evaluations: int) -> None:
        self._model, self._options, self._evaluations = model, options, evaluations
        self._losses = list[float]()
        self._first: int | None = None  # s and e, counted from 1
        self._last: int | None = None
        self._bound: float | None = None
        # Before s is found: all that left the window of N_s evaluations. Then: all from s on that N_e evaluations followed.
        self._settled = empty_like(model)
        self._between = list[
            RunningMean
        ]()  # of each of the latest evaluations: the steps after the one before, and its own
        self._points = list[RunningMean]()  # until s is found: w at each of the latest evaluations
        self._steps = self._empty()  # since the latest evaluation

    def _empty(self) -> RunningMean:
        # Every step enters, so it is not searched for NaN, which the loss would show.
        return RunningMean(self._model, dtype=torch.float64, check_finite=False)

    @property
    def has_ended(self) -> bool:
        return self._last is not None

    def selection_forwards(self, limits: ChoiceLimits) -> int:
        return self._evaluations * limits.one_mean

    @property
    def so_far(self) -> RunningMean:
        return merged(self._model, [self._settled, *self._between, self._steps])

    def visit(self, model: nn.Module, snapshot: int) -> None:  # noqa: ARG002  # evaluations are counted by `select`
        if not self.has_ended:
            self._steps.update(model)

    def select(self, evaluator: CandidateEvaluator) -> None:
        if self.has_ended:
            return
        point = mean_of(self._model)
        self._losses.append(evaluator.losses(point).mean().item())
        self._between.append(self._steps)
        self._steps = self._empty()
        if self._first is None:
            self._points.append(point)
            self._look_for_the_first()
        else:  # never both at one evaluation, as in the algorithm
            self._look_for_the_last(evaluator)

    def _look_for_the_first(self) -> None:
        patience = self._options.optimum_patience
        recent = self._losses[-patience:]
        if len(recent) == patience and recent[0] == min(recent):
            self._first = len(self._losses) - patience + 1
            self._bound = self._options.tolerance * sum(recent) / patience
            # Of the steps up to s only its own enters.
            self._settled, self._between, self._points = self._points[0], self._between[1:], []
        elif len(recent) == patience:
            self._settled.merge(self._between.pop(0))
            self._points.pop(0)

    def _look_for_the_last(self, evaluator: CandidateEvaluator) -> None:
        patience = self._options.overfit_patience
        while len(self._between) > patience:
            self._settled.merge(self._between.pop(0))
        assert self._bound is not None
        recent = self._losses[-patience:]
        # No loss up to s is above the bound, so that the N_e evaluations lie behind it.
        if len(recent) == patience and self._bound < min(recent):
            self._last = len(self._losses) - patience
            self._between = []
            evaluator.log(
                f"swad: the last {patience} losses on the selection split are above {self._bound:.5f}, so the mean is of every "
                f"step from evaluation {self._first} to {self._last}"
            )

    def finish(self, evaluator: CandidateEvaluator) -> Finished:
        first, last = self._first, self._last or len(self._losses)
        if first is None:
            evaluator.log("swad: the loss on the selection split has no minimum yet: the mean is of every step")
        mean = self.so_far
        valley = Valley(first=first, last=last, bound=self._bound, losses=self._losses)
        selection = Selection(delivered="averaged", of=len(self._losses), valley=valley)
        return Finished(mean, mean.n, selection)

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": self._losses,
            "first": self._first,
            "last": self._last,
            "bound": self._bound,
            "settled": self._settled.state_dict(),
            "between": [mean.state_dict() for mean in self._between],
            "points": [mean.state_dict() for mean in self._points],
            "steps": self._steps.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses, self._bound = list(state["losses"]), state["bound"]
        self._first, self._last = state["first"], state["last"]
        self._settled, self._steps = self._loaded(state["settled"]), self._loaded(state["steps"])
        self._between = [self._loaded(one) for one in state["between"]]
        self._points = [self._loaded(one) for one in state["points"]]

    def _loaded(self, state: dict[str, Any]) -> RunningMean:
        mean = self._empty()
        mean.load_state_dict(state)
        return mean
