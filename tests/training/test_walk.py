"""What `auto` chooses: every candidate beside its formula, and the rule beside valleys that are written out."""

from collections.abc import Callable
from math import isfinite

import pytest
import torch
from torch import Tensor, nn

from tests.training.valleys import Valley, weight
from wbar.errors import Diverged
from wbar_training.averages.average import Finished
from wbar_training.averages.choice import ChoiceLimits
from wbar_training.averages.walk import WalkAverage

PLENTY = ChoiceLimits(selection=400, recomputed=0, forwards=1e9)


def walked(segments: list[list[float]], visits: int | None = None) -> WalkAverage:
    """The average of a walk through these weights; the network stands at the last of them."""
    layer = nn.Linear(1, 1, bias=False)
    average = WalkAverage(layer, len(segments), visits or sum(map(len, segments)))
    for snapshot, values in enumerate(segments, start=1):
        for value in values:
            nn.init.constant_(layer.weight, value)
            average.visit(layer, snapshot)
    return average


def valley(centre: float, limits: ChoiceLimits = PLENTY, start: float = 0.0) -> Valley:
    """Losses without noise: of two means, the nearer one is better by many standard errors."""
    noise = torch.linspace(-0.5, 0.5, limits.selection, dtype=torch.float64)
    return Valley(lambda value: 1 + noise + (value - centre) ** 2 * (1 + 0.1 * noise), limits, start)


def chosen(finished: Finished) -> tuple[str, int, int, float]:
    assert finished.selection is not None
    candidate = finished.selection.chosen
    assert candidate is not None
    return candidate.kind, candidate.first, candidate.last, candidate.alpha


SEGMENTS = [[1.0, 2.0], [4.0, 6.0], [9.0, 7.0, 8.0], [13.0]]


@pytest.mark.parametrize(
    ("centre", "expected", "value", "points"),
    [
        (13.0, ("last", 4, 4, 1.0), 13.0, 1),
        (5.0, ("range", 2, 2, 1.0), 5.0, 2),
        (34 / 5, ("range", 2, 3, 1.0), 34 / 5, 5),
        (3.25, ("range", 1, 2, 1.0), 3.25, 4),
        (50 / 8, ("range", 1, 4, 1.0), 50 / 8, 8),
        (-1.0, ("range", 1, 1, 0.25), 0.375, 2),
    ],
)
def test_the_candidate_at_the_bottom_is_chosen(
    centre: float, expected: tuple[str, int, int, float], value: float, points: int
) -> None:
    finished = walked(SEGMENTS).finish(valley(centre))
    assert chosen(finished) == expected
    assert weight(finished.mean) == pytest.approx(value, abs=1e-12)
    assert finished.points == points
    assert finished.own_statistics == (expected[0] == "last")


def test_every_kind_of_candidate_is_tried() -> None:
    evaluator = valley(7.0, start=5.0)
    finished = walked(SEGMENTS).finish(evaluator)
    assert finished.selection is not None
    assert finished.selection.candidates is not None
    spans = [(c.first, c.last) for c in finished.selection.candidates if c.kind == "range" and c.alpha == 1]
    assert sorted(spans) == [(a, b) for a in range(1, 5) for b in range(a, 5)]
    assert sum(c.kind == "exponential" for c in finished.selection.candidates if c.alpha == 1) == 3
    assert {c.alpha for c in finished.selection.candidates} == {0.25, 0.5, 0.75, 1.0}
    assert evaluator.with_own_statistics, "the last weights have the statistics that training tracked"
    assert set(evaluator.with_own_statistics) == {13.0}


def test_an_exponential_mean_forgets_by_its_horizon() -> None:
    values = [float(n * n) for n in range(24)]
    average = walked([values[:12], values[12:]])
    for index, horizon in enumerate((8, 3, 1)):
        expected = values[0]
        for value in values[1:]:
            expected += (value - expected) / horizon
        assert weight(average._exponentials[index]) == pytest.approx(expected, rel=1e-12)


def test_a_point_on_the_line_is_between_start_and_mean() -> None:
    # The start at 20, the nearest mean at 13: a quarter of the way from the start is 18.25.
    finished = walked(SEGMENTS).finish(valley(18.25, start=20.0))
    assert chosen(finished) == ("last", 4, 4, 0.25)
    assert weight(finished.mean) == pytest.approx(18.25, abs=1e-12)
    assert not finished.own_statistics, "statistics of other weights would be wrong here"


def test_a_soup_is_of_segments_that_help_each_other() -> None:
    finished = walked([[0.0], [10.0], [4.0], [20.0]]).finish(valley(2.0, start=-100.0))
    assert chosen(finished) == ("soup", 1, 3, 1.0)
    assert finished.selection is not None
    assert finished.selection.kept == [1, 3]
    assert weight(finished.mean) == 2.0


def test_among_near_ties_the_longest_mean_wins() -> None:
    noise = torch.linspace(-1, 1, 400, dtype=torch.float64)
    away = {5.0: 0.0, 50 / 8: 0.5}  # the mean of all is worse than that of segment 2, by half an error

    def losses(value: float) -> Tensor:
        error = noise.std().item() / 20
        return 1 + away.get(round(value, 9), 3.0) * error + (noise if value != 5.0 else 0 * noise)

    assert chosen(walked(SEGMENTS).finish(Valley(losses, PLENTY)))[:3] == ("range", 1, 4)
    away[50 / 8] = 1.5
    assert chosen(walked(SEGMENTS).finish(Valley(losses, PLENTY)))[:3] == ("range", 2, 2)


def test_of_few_images_the_lowest_mean_rank_decides() -> None:
    few = ChoiceLimits(selection=100, recomputed=0, forwards=1e9)

    def losses(value: float) -> Tensor:
        # Segment 2 has the lowest mean, by two images alone; segment 3 is a little better on all the others.
        if value == 5.0:
            return torch.cat([torch.full((2,), -50.0), torch.full((98,), 1.0)]).double()
        return torch.full((100,), 0.9 if value == 8.0 else 2.0, dtype=torch.float64)

    ranked = chosen(walked(SEGMENTS).finish(Valley(losses, few)))
    assert ranked[:3] == ("range", 2, 2), "every half has one of the two, as the halves are even"
    last = walked(SEGMENTS).finish(
        Valley(lambda value: losses(value) + 60 * (torch.arange(100) == 1) * (value == 5.0), few)
    )
    assert chosen(last)[:3] == ("range", 3, 3), "now only half of the halves have the lucky one"


def test_a_candidate_that_is_not_finite_is_left_out() -> None:
    def losses(value: float) -> Tensor:
        return torch.full((400,), float("nan") if value == 5.0 else abs(value - 5.0), dtype=torch.float64)

    finished = walked(SEGMENTS).finish(Valley(losses, PLENTY))
    assert finished.selection is not None
    assert finished.selection.candidates is not None
    assert all(isfinite(one.loss) for one in finished.selection.candidates)
    assert chosen(finished)[:3] != ("range", 2, 2)
    with pytest.raises(Diverged, match="no mean of the walk"):
        walked(SEGMENTS).finish(Valley(lambda _: torch.full((400,), float("inf")), PLENTY))


def test_of_equal_means_the_longest_is_taken_whatever_the_rule() -> None:
    for images in (100, 400):
        limits = ChoiceLimits(images, 0, 1e9)
        finished = walked(SEGMENTS).finish(Valley(lambda _, n=images: torch.ones(n, dtype=torch.float64), limits))
        assert chosen(finished)[:3] == ("range", 1, 4)


@pytest.mark.parametrize("forwards", [3_000, 10_000, 40_000, 200_000])
@pytest.mark.parametrize("recomputed", [0, 600])
@pytest.mark.parametrize("images", [64, 250, 3000])
def test_a_choice_costs_what_was_planned_and_no_more_than_it_may(forwards: int, recomputed: int, images: int) -> None:
    limits = ChoiceLimits(images, recomputed, forwards)
    average = walked([[float(n)] for n in range(8)])
    evaluator = valley(4.3, limits)
    finished = average.finish(evaluator)
    assert evaluator.forwards <= average.selection_forwards(limits) <= forwards
    assert finished.selection is not None
    if not finished.selection.assumed:
        assert finished.selection.candidates
        assert all(64 <= (c.images or 0) <= images for c in finished.selection.candidates)


@pytest.mark.parametrize("limits", [ChoiceLimits(63, 0, 1e9), ChoiceLimits(1000, 500, 100)])
def test_what_cannot_be_told_is_assumed_and_said(limits: ChoiceLimits) -> None:
    evaluator = valley(0.0, limits)
    finished = walked([[float(n)] for n in range(6)]).finish(evaluator)
    assert finished.selection is not None
    assert (finished.selection.assumed, finished.selection.kept) == (True, [5, 6])
    assert weight(finished.mean) == 4.5
    assert evaluator.forwards == 0
    assert "assumed, not chosen" in evaluator.logs[0]


def test_a_walk_that_was_saved_goes_on_to_the_same_choice() -> None:
    whole, half, other = walked(SEGMENTS), walked(SEGMENTS[:2], visits=8), walked([[0.0]] * 4, visits=8)
    other.load_state_dict(half.state_dict())
    for snapshot, values in enumerate(SEGMENTS[2:], start=3):
        for value in values:
            nn.init.constant_(other._model.weight, value)  # type: ignore[arg-type]  # a Linear's own weight
            other.visit(other._model, snapshot)
    choices: list[Callable[[], WalkAverage]] = [lambda: whole, lambda: other]
    for centre in (5.0, 13.0, 6.25):
        results = [chosen(make().finish(valley(centre))) for make in choices]
        assert results[0] == results[1]


def test_a_walk_that_was_stopped_in_its_first_segment_has_a_choice_too() -> None:
    average = WalkAverage(nn.Linear(1, 1, bias=False), 8, 48)
    average.visit(average._model, 1)
    assert average.finish(valley(0.0)).selection is not None
