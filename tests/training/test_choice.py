"""The rules of a choice beside sums written out."""

import pytest
import torch

from wbar_training.averages.choice import (
    LEAST,
    MANY,
    ChoiceLimits,
    cannot_tell,
    longest_near_tie,
    mean_ranks,
    plan_choice,
    stratified_halves,
)


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_one_standard_error_of_the_paired_difference() -> None:
    lowest = values(1, 2, 3, 4)
    # Differences 0, 0, 0, 2: mean 0.5, standard deviation 1, standard error 0.5.
    assert cannot_tell(values(1, 2, 3, 6), lowest)
    assert not cannot_tell(values(1.01, 2.01, 3.01, 6), lowest)
    assert cannot_tell(values(9), values(1)), "one image tells nothing"


def test_the_longest_of_the_near_ties_and_of_equals_the_lower() -> None:
    tied = [values(1, 1, 1, 1), values(1, 1, 1, 2), values(1, 1, 1, 1.5), values(5, 5, 5, 5)]
    assert longest_near_tie(tied, [1, 2, 2, 9]) == 2


def test_halves_are_even_in_every_class() -> None:
    labels = torch.arange(90) % 3
    halves = stratified_halves(labels, torch.Generator().manual_seed(0))
    assert len(halves) == 20
    for first, second in zip(halves[::2], halves[1::2], strict=True):
        assert sorted((*first.tolist(), *second.tolist())) == list(range(90))
        assert labels[first].bincount().tolist() == labels[second].bincount().tolist() == [15, 15, 15]
    assert halves[0].tolist() != halves[2].tolist()


def test_mean_ranks() -> None:
    halves = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    assert mean_ranks([values(1, 1, 9, 9), values(2, 2, 2, 2), values(3, 3, 3, 3)], halves) == [1.0, 0.5, 1.5]
    assert mean_ranks([values(1, 1, 1, 1)] * 5, halves) == [2.0] * 5, "equal ones share their ranks"


@pytest.mark.parametrize("forwards", [100, 2_000, 5_000, 20_000, 1e6, 1e9])
@pytest.mark.parametrize("recomputed", [0, 1000])
@pytest.mark.parametrize("selection", [30, 64, 199, 500, 5000])
def test_a_plan_keeps_its_promises(selection: int, recomputed: int, forwards: float) -> None:
    limits = ChoiceLimits(selection, recomputed, forwards)
    plan = plan_choice(40, 7, limits)
    if selection < LEAST:
        assert plan is None
    if plan is None:
        return
    assert plan.forwards <= forwards
    assert plan.final.images >= min(selection, MANY)
    counts = [count for count, _ in plan.rounds]
    assert all(effort.images >= LEAST for _, effort in plan.rounds)
    assert counts == sorted(counts, reverse=True)
    assert 1 <= plan.finalists <= 4
    assert (plan.soups == 7) == (plan.entering == 40 and bool(counts))


def test_more_budget_never_tries_fewer() -> None:
    entering = [
        plan.entering if (plan := plan_choice(40, 7, ChoiceLimits(500, 400, f))) else 0 for f in range(0, 60_000, 500)
    ]
    assert entering == sorted(entering)
    assert entering[0] == 0
    assert entering[-1] == 40
