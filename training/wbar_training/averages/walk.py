"""What `auto` chooses from: everything on its walk, and the way back to the start.

    last          w_T with the BatchNorm statistics that training tracked: the control's model
    range         Σ n_s·m_s / Σ n_s over the segments [a, b], m_s the mean of the n_s visits in segment s
    exponential   w̄ ← d·w̄ + (1 − d)·w at every visit, d = 1 − 1/h, for horizons h of a third, an eighth and a 24th of them
    soup          segments by rising loss; one enters if the mean's loss does not rise      (Wortsman et al. 2022, recipe 1)
    line          (1 − α)·w_0 + α·c, for the best candidates c                               (Wortsman et al. 2022, WiSE-FT)

Kept are S + 3 copies of the network: the mean of a range is a merge of segment means, not of the weights in it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from wbar.choices import Candidate, CandidateKind, Selection
from wbar.errors import Diverged
from wbar_averaging import ExponentialMean, RunningMean
from wbar_training.averages.average import (
    Average,
    CandidateEvaluator,
    Evaluated,
    Finished,
    empty_like,
    mean_of,
    merged,
    on_line,
)
from wbar_training.averages.choice import (
    ALPHAS,
    MANY,
    ChoiceLimits,
    Effort,
    Plan,
    longest_near_tie,
    mean_ranks,
    plan_choice,
)

HORIZONS = (1 / 3, 1 / 8, 1 / 24)  # of an exponential mean, as shares of the visits


@dataclass(frozen=True, eq=False)
class Proposal:
    """One mean that may be chosen.

    first, last: the segments that its points are from, counted from 0.
    points: how many weights are averaged in it.
    length: among near ties the longest is taken; of an exponential mean the points that most of its weight is on.
    make: makes it; it is not kept.
    segments: those of a range or a soup.
    alpha: its place on the line from the start, which is at 0.
    """

    kind: CandidateKind
    first: int
    last: int
    points: int
    length: float
    make: Callable[[], RunningMean]
    segments: tuple[int, ...] = ()
    alpha: float = 1.0

    @property
    def own_statistics(self) -> bool:
        """Whether BatchNorm's are those of training."""
        return self.kind == "last" and self.alpha == 1.0

    def record(self, evaluated: Evaluated) -> Candidate:
        """Return what the result says of it."""
        return Candidate(
            kind=self.kind,
            first=self.first + 1,
            last=self.last + 1,
            alpha=self.alpha,
            loss=evaluated.loss,
            images=len(evaluated.values),
        )


class WalkAverage(Average):
    """The choice among everything on the walk.

    model: the network that walks; its weights are read when the walk has ended.
    segments: how many the steps are cut into, one per snapshot.
    visits: how many are planned.
    lines: whether lines from the start are candidates; not where the job draws one itself, to what is chosen here.
    """

    def __init__(self, model: nn.Module, segments: int, visits: int, lines: bool = True) -> None:
        self._model, self._segments, self._lines = model, segments, lines
        self._means: list[RunningMean] = []
        self._exponentials = [
            ExponentialMean(
                model, 1 - 1 / max(1.0, share * visits), warmup=False, dtype=torch.float64, compensated=False
            )
            for share in HORIZONS
        ]

    @property
    def so_far(self) -> RunningMean:
        return merged(self._model, self._means)

    def visit(self, model: nn.Module, snapshot: int) -> None:
        while len(self._means) < snapshot:
            self._means.append(empty_like(self._model))
        self._means[-1].update(model)
        for mean in self._exponentials:
            mean.update(model)

    def selection_forwards(self, limits: ChoiceLimits) -> int:
        plan = plan_choice(_proposed(self._segments), self._segments - 1, limits, self._lines)
        return plan.forwards if plan else 0

    def finish(self, evaluator: CandidateEvaluator) -> Finished:
        proposals = self._proposals()
        assert len(proposals) == _proposed(len(self._means))
        plan = plan_choice(len(proposals), len(self._means) - 1, evaluator.limits, self._lines)
        if plan is None:
            return self._assumed(evaluator)
        tried, last_round = self._tried(proposals, plan, evaluator)
        values = [tried[one].values for one in last_round]
        if plan.final.images < MANY:
            ranks = mean_ranks(values, evaluator.halves(plan.final.images))
            best = min(range(len(ranks)), key=lambda index: (ranks[index], -last_round[index].length))
            rule = "the lowest mean rank over repeated halves"
        else:
            best = longest_near_tie(values, [one.length for one in last_round])
            rule = "the longest mean within one standard error of the lowest"
        chosen = last_round[best]
        record = chosen.record(tried[chosen])
        evaluator.log(
            f"of {len(tried)} candidates it is {record.in_words()}: {values[best].mean().item():.5f} on {plan.final.images} "
            f"images of the selection split, {rule} ({min(one.mean().item() for one in values):.5f})"
        )
        selection = Selection(
            delivered="averaged",
            kept=self._kept(chosen),
            of=len(self._means),
            loss=tried[chosen].loss,
            chosen=record,
            candidates=[one.record(evaluated) for one, evaluated in tried.items()],
        )
        return Finished(chosen.make(), chosen.points, selection, chosen.own_statistics)

    # Who is a candidate.

    def _proposals(self) -> list[Proposal]:
        """Return all but soups and lines, those that are most often the best first: a small budget pays for the first."""
        count = len(self._means)
        last = Proposal("last", count - 1, count - 1, 1, 1, lambda: mean_of(self._model))
        ranges = [self._range(begin, end) for begin in range(count) for end in range(begin, count)]
        thirds = [begin for begin in (count * 2 // 3, count // 3, 0) if begin < count]
        first = [last, *(self._range(begin, count - 1) for begin in dict.fromkeys(thirds))]
        spans = {(one.first, one.last) for one in first[1:]}
        others = [one for one in ranges if (one.first, one.last) not in spans]
        others.sort(key=lambda one: (-one.last, one.first))
        return [*first, *self._exponential_proposals(), *others]

    def _range(self, begin: int, end: int) -> Proposal:
        return self._of("range", tuple(range(begin, end + 1)))

    def _of(self, kind: CandidateKind, segments: tuple[int, ...]) -> Proposal:
        means = [self._means[segment] for segment in segments]
        points = sum(mean.n for mean in means)
        return Proposal(
            kind, min(segments), max(segments), points, points, lambda: merged(self._model, means), segments
        )

    def _exponential_proposals(self) -> Iterator[Proposal]:
        for mean, share in zip(self._exponentials, HORIZONS, strict=True):

            def make(mean: ExponentialMean = mean) -> RunningMean:
                return mean_of(mean.mean(torch.float64), self._model)

            yield Proposal("exponential", 0, len(self._means) - 1, mean.n, share * mean.n, make)

    def _line(self, proposal: Proposal, alpha: float, start: Mapping[str, Tensor]) -> Proposal:
        def make() -> RunningMean:
            return on_line(self._model, start, proposal.make(), alpha)

        return replace(proposal, make=make, alpha=alpha)

    # Evaluating them.

    def _tried(
        self, proposals: Sequence[Proposal], plan: Plan, evaluator: CandidateEvaluator
    ) -> tuple[dict[Proposal, Evaluated], list[Proposal]]:
        """Return every candidate that was evaluated, with its latest evaluation, and those of the last round.

        Raises Diverged if no candidate of the last round has finite outputs.
        """
        tried, staying = dict[Proposal, Evaluated](), list(proposals[: plan.entering])
        for number, (_, effort) in enumerate(plan.rounds):
            evaluated = _evaluated(staying, effort, evaluator)
            if number == 0 and plan.soups:
                evaluated |= self._soup(evaluated, effort, evaluator)
            tried |= evaluated
            following = [count for count, _ in plan.rounds[number + 1 :]] + [plan.finalists]
            staying = _best(evaluated, following[0])
        final = _evaluated(staying, plan.final, evaluator)
        start = evaluator.start()
        lines = [self._line(one, alpha, start) for one in _best(final, plan.lines) for alpha in ALPHAS]
        final |= _evaluated(lines, plan.final, evaluator)
        if not final:
            raise Diverged("no mean of the walk has finite outputs on the selection split: lower method.lr")
        return tried | final, list(final)

    def _soup(
        self, evaluated: Mapping[Proposal, Evaluated], effort: Effort, evaluator: CandidateEvaluator
    ) -> dict[Proposal, Evaluated]:
        """Return the greedy soup of the segments; nothing where it is one of the ranges."""
        single = {one: found for one, found in evaluated.items() if one.kind == "range" and one.first == one.last}
        order = _best(single, len(single))
        if not order:
            return {}
        kept, best = order[0], single[order[0]]
        for one in order[1:]:
            candidate = self._of("soup", tuple(sorted((*kept.segments, *one.segments))))
            found = _evaluated([candidate], effort, evaluator).get(candidate)
            if found is not None and found.values.mean() <= best.values.mean():
                kept, best = candidate, found
        is_range = len(kept.segments) == kept.last - kept.first + 1
        return {} if is_range else {kept: best}

    def _kept(self, chosen: Proposal) -> list[int] | None:
        return [segment + 1 for segment in chosen.segments] or None

    def _assumed(self, evaluator: CandidateEvaluator) -> Finished:
        count = len(self._means)
        begin = count * 2 // 3
        chosen = self._range(begin, count - 1)
        evaluator.log(
            f"{evaluator.limits.selection} images of the selection split, and this much training, cannot tell candidates "
            f"apart: the mean of the last third of the walk is assumed, not chosen (segments {begin + 1} to {count} of {count})"
        )
        selection = Selection(delivered="averaged", kept=self._kept(chosen), of=count, assumed=True)
        return Finished(chosen.make(), chosen.points, selection)

    def state_dict(self) -> dict[str, Any]:
        return {
            "means": [mean.state_dict() for mean in self._means],
            "exponentials": [mean.state_dict() for mean in self._exponentials],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means = []
        for one in state["means"]:
            self._means.append(empty_like(self._model))
            self._means[-1].load_state_dict(one)
        for mean, one in zip(self._exponentials, state["exponentials"], strict=True):
            mean.load_state_dict(one)


def _evaluated(
    proposals: Sequence[Proposal], effort: Effort, evaluator: CandidateEvaluator
) -> dict[Proposal, Evaluated]:
    """Return the evaluation of each proposal whose outputs are finite."""
    found = {one: evaluator.values(one.make(), effort, one.own_statistics) for one in proposals}
    return {one: evaluated for one, evaluated in found.items() if evaluated is not None}


def _best(evaluated: Mapping[Proposal, Evaluated], count: int) -> list[Proposal]:
    return sorted(evaluated, key=lambda one: evaluated[one].values.mean().item())[:count]


def _proposed(segments: int) -> int:
    """Return how many candidates `WalkAverage._proposals` makes: the last weights, every range, the exponential means."""
    return 1 + segments * (segments + 1) // 2 + len(HORIZONS)
