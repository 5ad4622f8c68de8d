"""Dense averaging: where the valley begins and ends, and every step of it in the mean, beside the printed algorithm."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.averaging import reference
from tests.training.valleys import Valley, weight
from wbar.method import Swad
from wbar_training.averages.dense import DenseAverage

STEPS = 3  # between two evaluations


class Walk:
    """A network with one weight that walks 1, 2, 3, …, and has the given loss at each evaluation."""

    def __init__(self, losses: list[float], options: Swad) -> None:
        self.losses, self.layer, self.step = losses, nn.Linear(1, 1, bias=False), 0
        self.average = DenseAverage(self.layer, options, len(losses))
        self.evaluator = Valley(lambda at: torch.full((2,), losses[round(at) // STEPS - 1], dtype=torch.float64))

    def take(self) -> None:
        """Take a step, and evaluate where an evaluation is due."""
        self.step += 1
        nn.init.constant_(self.layer.weight, self.step)
        self.average.visit(self.layer, 1)
        if self.step % STEPS == 0:
            self.average.select(self.evaluator)

    def walk(self) -> None:
        """Walk to the end, or as long as the average wants."""
        while self.step < len(self.losses) * STEPS and not self.average.has_ended:
            self.take()


def expected_mean(losses: list[float], options: Swad) -> tuple[float, int]:
    """The mean of the steps' weights in the range that the twin finds, and their number."""
    first, last, _ = reference.swad_range(losses, options.optimum_patience, options.overfit_patience, options.tolerance)
    begin = 1 if first is None else first * STEPS
    steps = range(begin, last * STEPS + 1)
    return sum(steps) / len(steps), len(steps)


FALLING_AND_RISING = [3.0, 2.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1, 2.2]


def test_the_valley_by_hand() -> None:
    walk = Walk(FALLING_AND_RISING, Swad(optimum_patience=3, overfit_patience=4, tolerance=1.3))
    walk.walk()
    # The first minimum is evaluation 3, the bound 1.3 · (1.0 + 1.1 + 1.2)/3 = 1.43: 1.6 … 1.9 are four in a row above it.
    finished = walk.average.finish(walk.evaluator)
    valley = finished.selection.valley
    assert valley is not None
    assert (valley.first, valley.last, valley.bound) == (3, 7, pytest.approx(1.43))
    assert valley.losses == FALLING_AND_RISING[:11], "training ends with the evaluation that shows the rise"
    assert walk.average.has_ended
    assert finished.points == 13
    assert weight(finished.mean) == pytest.approx(sum(range(9, 22)) / 13, abs=1e-12)


def test_without_a_rise_all_from_the_minimum_on_and_without_a_minimum_every_step() -> None:
    flat = Walk([2.0, 1.0, 1.0, 1.0, 1.0], Swad())
    flat.walk()
    finished = flat.average.finish(flat.evaluator)
    assert weight(finished.mean) == pytest.approx(sum(range(6, 16)) / 10)
    falling = Walk([5.0, 4.0, 3.0, 2.0], Swad())
    falling.walk()
    finished = falling.average.finish(falling.evaluator)
    assert finished.selection.valley.first is None
    assert weight(finished.mean) == pytest.approx(sum(range(1, 13)) / 12)


LOSSES = st.lists(st.floats(0.5, 3), min_size=1, max_size=24)
OPTIONS = st.builds(
    Swad, optimum_patience=st.integers(1, 5), overfit_patience=st.integers(1, 5), tolerance=st.floats(1, 1.5)
)


@settings(deadline=None, max_examples=40)
@given(LOSSES, OPTIONS)
def test_the_mean_is_that_of_the_algorithm_as_printed(losses: list[float], options: Swad) -> None:
    walk = Walk(losses, options)
    walk.walk()
    finished = walk.average.finish(walk.evaluator)
    first, last, looked_at = reference.swad_range(
        losses, options.optimum_patience, options.overfit_patience, options.tolerance
    )
    valley = finished.selection.valley
    assert valley is not None
    assert (valley.first, valley.last, len(valley.losses)) == (first, last, looked_at)
    mean, points = expected_mean(losses, options)
    assert finished.points == points
    assert weight(finished.mean) == pytest.approx(mean, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(LOSSES, OPTIONS, st.integers(0, 2**31))
def test_a_state_taken_anywhere_goes_on_to_the_same_mean(losses: list[float], options: Swad, seed: int) -> None:
    whole, broken = Walk(losses, options), Walk(losses, options)
    whole.walk()
    cut = random.Random(seed).randrange(whole.step)
    for _ in range(cut):
        broken.take()
    state = broken.average.state_dict()
    again = Walk(losses, options)
    again.average.load_state_dict(state)
    again.step = cut
    again.walk()
    assert again.step == whole.step
    one, other = (each.average.finish(each.evaluator) for each in (whole, again))
    assert one.selection == other.selection
    assert weight(one.mean) == weight(other.mean)


def test_no_more_copies_are_kept_than_it_says() -> None:
    options = Swad(optimum_patience=2, overfit_patience=3, tolerance=100)
    for losses in ([*map(float, range(40, 0, -1))], [1.0] * 40):
        walk = Walk(losses, options)
        most = 0
        while walk.step < len(losses) * STEPS:
            walk.take()
            state = walk.average.state_dict()
            most = max(most, len(state["between"]) + len(state["points"]) + 2)
        assert most <= options.optimum_patience + options.overfit_patience + 2
