"""What each average is made of, beside sums written out; choices that depend on nothing but the losses they are given."""

import pytest
import torch
from torch import nn

from tests.training.valleys import Valley, weight
from wbar.method import METHODS
from wbar.schedule import build_schedule
from wbar_training.averages.making import make_average
from wbar_training.averages.selecting import GreedyAverage, WindowAverage

RESOLVED = {"lr": 0.1, "control_lr": 0.1}


def model(value: float) -> nn.Module:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def averaged(values: list[float], **method: object):
    """The average of a method whose steps have these weights, one step an epoch."""
    chosen = METHODS.validate_python(RESOLVED | {"epochs": len(values)} | method)
    schedule = build_schedule(chosen, 1)
    average = make_average(chosen, schedule, model(0))
    for step, value in enumerate(values):
        if schedule.visits(step):
            average.visit(model(value), schedule.at(step).cycle)
    return average


def test_swa_is_the_mean_of_all_lawa_of_the_last_and_none_is_the_last() -> None:
    values = [1.0, 5.0, 2.0, 8.0]
    assert weight(averaged(values, type="swa", anneal_from=0.1).so_far) == 4.0
    assert weight(averaged(values, type="lawa", window=2, final_lr=0.1).so_far) == 5.0
    assert weight(averaged(values, type="none", final_lr=0.0).so_far) == 8.0


def test_an_ema_forgets_its_beginning_by_its_warm_up() -> None:
    values = [1.0, 5.0, 2.0]
    expected = 1.0
    for t, value in enumerate(values[1:], start=1):
        d = min(0.9, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * value
    actual = weight(averaged(values, type="ema", decay=0.9, final_lr=0.1).so_far)
    assert actual == pytest.approx(expected, rel=1e-6)


def bowl(centre: float) -> Valley:
    """Losses of two images, lowest where the mean is at the centre."""
    return Valley(lambda value: torch.full((2,), (value - centre) ** 2, dtype=torch.float64))


def test_greedy_lets_in_what_does_not_raise_the_loss() -> None:
    average, evaluator = GreedyAverage(model(0), 4), bowl(3.0)
    for n, value in enumerate([4.0, 10.0, 2.0, 3.0], start=1):
        average.visit(model(value), n)
        average.select(evaluator)
    finished = average.finish(evaluator)
    assert finished.selection is not None
    assert finished.selection.kept == [1, 3, 4]  # 4; not 7; 3; still 3, which does not rise
    assert (weight(finished.mean), finished.points) == (3.0, 3)


def test_a_window_is_the_mean_of_consecutive_segments_by_their_counts() -> None:
    average = WindowAverage(model(0), 3, lambda snapshot: snapshot - 1)
    for snapshot, values in ((1, [9.0]), (2, [1.0, 2.0, 3.0]), (3, [6.0])):
        for value in values:
            average.visit(model(value), snapshot)
    assert weight(average.so_far) == pytest.approx(21 / 5)
    finished = average.finish(bowl(3.0))  # 2 and 3: (1 + 2 + 3 + 6) / 4
    selection = finished.selection
    assert selection is not None
    assert (selection.kept, selection.of) == ([2, 3], 3)
    assert (weight(finished.mean), finished.points) == (3.0, 4)
    assert selection.candidates is not None
    tried = {(c.first, c.last): c.loss for c in selection.candidates if c.alpha == 1}
    assert tried == {
        (1, 1): 36.0,
        (1, 2): pytest.approx((15 / 4 - 3) ** 2),
        (1, 3): pytest.approx((21 / 5 - 3) ** 2),
        (2, 2): 1.0,
        (2, 3): 0.0,
        (3, 3): 9.0,
    }


def test_the_longest_range_within_one_standard_error_wins() -> None:
    average = WindowAverage(model(0), 3, lambda snapshot: snapshot - 1)
    for snapshot in (1, 2, 3):
        average.visit(model({1: 1.0, 2: 2.0, 3: 3.3}[snapshot]), snapshot)
    # Per image: the lowest mean is segment 2's; the mean of all (2.1) cannot be told from it, segment 1 can.
    losses = {
        1.0: [3.0, 3.1, 2.9, 3.0],
        2.0: [1.0, 1.0, 1.0, 1.0],
        1.5: [2.0, 2.0, 2.1, 2.0],
        2.1: [1.4, 0.7, 1.3, 0.8],
    }

    def evaluator() -> Valley:
        return Valley(
            lambda value: torch.tensor(losses.get(round(value, 6), [2.0, 2.0, 2.0, 2.1]), dtype=torch.float64)
        )

    selection = average.finish(evaluator()).selection
    assert selection is not None
    assert selection.kept == [1, 2, 3]
    losses[2.1] = [1.4, 1.3, 1.3, 1.4]  # now it can
    selection = average.finish(evaluator()).selection
    assert selection is not None
    assert selection.kept == [2]


@pytest.mark.parametrize(("centre", "alpha"), [(3.0, 1.0), (2.9, 1.0), (1.5, 0.5), (-1.0, 0.25)])
def test_a_window_may_be_a_point_on_its_line_from_the_start(centre: float, alpha: float) -> None:
    average = WindowAverage(model(0), 2, lambda snapshot: snapshot - 1)
    for snapshot, value in ((1, 3.0), (2, 3.0)):
        average.visit(model(value), snapshot)
    finished = average.finish(bowl(centre))
    assert finished.selection is not None
    assert finished.selection.chosen is not None
    assert (finished.selection.chosen.alpha, finished.selection.kept) == (alpha, [1, 2])
    assert weight(finished.mean) == pytest.approx(3 * alpha)
