"""How a choice among many means is made from few images: what it may cost, who is evaluated on how much, and the rule.

budget    SHARE of the training's work, in forward passes of one image; of a training step, an image counts three
halving   every candidate is evaluated on the first images of the selection split, in an order that the seed fixes, with
          BatchNorm recomputed from some training images; the better half goes on, with twice as many
          (Jamieson & Talwalkar 2016); at the end the lines from the start to the best ones join in
rule      of those whose paired difference to the lowest mean is within one standard error, the longest mean
          (Breiman et al. 1984, section 3.4.3); of fewer than MANY images the lowest mean rank over halves (ADR 19)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

SHARE = 0.15
TRAINING = 3.0  # forward passes that one image of a training step costs: its own, and two for the backward pass
LEAST = 64  # images of the selection split that an evaluation needs: fewer tell nothing
SELECTION_BATCH_NORM_IMAGES = (
    1024  # training images that statistics are recomputed from; 512 were enough in measurements
)
MANY = 200  # images of the last round, if there are as many; of fewer, ranks decide and not the standard error
HALVINGS = 10
LAST_ROUNDS = ((4, 2), (3, 1), (2, 1), (1, 1))  # finalists, and how many of them with their line to the start
ALPHAS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class ChoiceLimits:
    """The images and the forward passes that a choice has.

    selection: images of the selection split.
    recomputed: training images that BatchNorm statistics can be recomputed from; 0 where the network has none.
    forwards: forward passes of one image that all evaluations together may take.
    """

    selection: int
    recomputed: int
    forwards: float

    @property
    def one_mean(self) -> int:
        """Forward passes of one image that one mean takes, on the whole selection split."""
        return self.selection + min(self.recomputed, SELECTION_BATCH_NORM_IMAGES)


@dataclass(frozen=True)
class Effort:
    """The work of one evaluation.

    images: of the selection split.
    recomputed: training images that BatchNorm statistics are recomputed from.
    """

    images: int
    recomputed: int


@dataclass(frozen=True)
class Plan:
    """The evaluations of a choice.

    entering: how many of the candidates take part, from the beginning of their order.
    soups: means that the greedy soup tries beside them, in the first round.
    rounds: of halving: how many are evaluated, and what each of them takes.
    finalists, lines, final: the last round, with the lines from the start.
    """

    entering: int
    soups: int
    rounds: tuple[tuple[int, Effort], ...]
    finalists: int
    lines: int
    final: Effort

    @property
    def forwards(self) -> int:
        """Forward passes of one image that all of it takes."""
        counts = [*self.rounds, (self.finalists + self.lines * len(ALPHAS), self.final)]
        return sum(count * (effort.images + effort.recomputed) for count, effort in counts)


def plan_choice(candidates: int, soups: int, limits: ChoiceLimits, lines: bool = True) -> Plan | None:
    """Return the plan that tries as many candidates as the budget pays for; None where it pays for none, or no image tells.

    soups: what the greedy soup takes, once all candidates take part.
    lines: whether lines from the start take part.
    """
    if limits.selection < LEAST:
        return None
    enough = min(limits.selection, MANY)
    for entering in range(candidates, 0, -1):
        for finalists, with_line in LAST_ROUNDS:
            drawn = with_line if lines else 0
            plan = _plan(entering, soups if entering == candidates else 0, finalists, drawn, limits)
            if plan.final.images >= enough and all(effort.images >= LEAST for _, effort in plan.rounds):
                return plan
    return None


def _plan(entering: int, soups: int, finalists: int, lines: int, limits: ChoiceLimits) -> Plan:
    counts, staying = list[int](), entering
    while staying > finalists:
        counts.append(staying)
        staying = max(finalists, staying // 2)
    if counts:
        counts[0] += soups
    lines = min(lines, staying)
    # The last round decides: it has half of the budget, and the others the other half.
    for_last = limits.forwards / 2 if counts else limits.forwards
    rounds = tuple((count, _effort((limits.forwards - for_last) / len(counts) / count, limits)) for count in counts)
    final = _effort(for_last / (staying + lines * len(ALPHAS)), limits)
    return Plan(entering, soups if counts else 0, rounds, staying, lines, final)


def _effort(forwards: float, limits: ChoiceLimits) -> Effort:
    """Share the forward passes of one evaluation: a third for BatchNorm, and what one part cannot use for the other."""
    most = min(SELECTION_BATCH_NORM_IMAGES, limits.recomputed)
    recomputed = min(most, int(forwards / 3))
    images = min(limits.selection, int(forwards) - recomputed)
    return Effort(images, min(most, int(forwards) - images))


def stratified_halves(strata: Tensor, draws: torch.Generator) -> list[Tensor]:
    """Return the indices of both halves of HALVINGS random halvings, which share every stratum evenly.

    strata: (N,) int64, of the images.
    """
    halves = []
    for _ in range(HALVINGS):
        order = torch.randperm(len(strata), generator=draws)
        order = order[strata[order].sort(stable=True).indices]  # stratum by stratum, at random within
        halves += [order[0::2], order[1::2]]
    return halves


def mean_ranks(values: Sequence[Tensor], halves: Sequence[Tensor]) -> list[float]:
    """Return the mean rank of each candidate over the halves, from 0 for the lowest mean; equal means share their ranks.

    values: of each candidate, one per image of the selection split; lower is better.
    """
    means = torch.stack([torch.stack([one[half].mean() for one in values]) for half in halves])
    lower = (means[:, None, :] < means[:, :, None]).double().sum(dim=2)
    equal = (means[:, None, :] == means[:, :, None]).double().sum(dim=2) - 1
    ranks: list[float] = (lower + equal / 2).mean(dim=0).tolist()
    return ranks


def cannot_tell(values: Tensor, lowest: Tensor) -> bool:
    """Return whether the paired difference of two candidates' values, (N,), is at most one standard error."""
    difference = values - lowest
    if len(difference) < 2:
        return True  # one image cannot tell them apart
    error: float = difference.std(unbiased=True).item() / sqrt(len(difference))
    return bool(difference.mean().item() <= error)


def alpha_of(line: Mapping[float, Tensor]) -> float:
    """Return the α of a line from the start that is kept: 1, unless another one is lower by more than a standard error.

    line: by α, values per image of the selection split, (N,); lower is better.
    """
    alphas = list(line)
    return alphas[longest_near_tie(list(line.values()), [alpha == 1 for alpha in alphas])]


def longest_near_tie(values: Sequence[Tensor], lengths: Sequence[float]) -> int:
    """Return the index of the longest candidate that cannot be told from the lowest; of equally long ones, the lower.

    values: of each candidate, one per image of the selection split; lower is better.
    lengths: of each candidate.
    """
    means = [one.mean().item() for one in values]
    lowest = values[min(range(len(values)), key=means.__getitem__)]
    near = [index for index, one in enumerate(values) if cannot_tell(one, lowest)]
    return max(near, key=lambda index: (lengths[index], -means[index]))
