"""The grid of a loss surface, and histograms that add up."""

import pytest
from pydantic import ValidationError

from wbar.job_request import JobOptions, JobRequest
from wbar.loss_surface import HIGHEST, LOWEST, Histogram, SurfaceOptions
from wbar.spec import without_new_defaults
from wbar_averaging.flatness import BINS_PER_DECADE, FIRST_DECADE, LAST_DECADE


def test_the_grid_has_its_centre_in_the_middle() -> None:
    assert SurfaceOptions(points=5, reach=0.5).positions == [-0.5, -0.25, 0.0, 0.25, 0.5]
    assert len(SurfaceOptions().positions) == 11


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"flatness": True, "surface": {"points": 4}}, "4 points have none in the middle: take 3 or 5"),
        ({"flatness": True, "surface": {"points": 33}}, "less than or equal to 31"),
        ({"flatness": True, "surface": {"around": ["start", "start"]}}, "'start' is given twice"),
        ({"flatness": True, "surface": {"around": ["ensemble"]}}, "'start', 'last' or 'averaged'"),
        ({"surface": {}}, "surface is a measurement of flatness, which is false"),
    ],
)
def test_what_is_no_grid_is_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("(", "\\(")):
        JobOptions.model_validate(asked)


def test_a_request_without_a_surface_is_stored_as_before() -> None:
    asked = JobRequest(checkpoint="ckpt_1", dataset="ds_1", flatness=True)
    assert "surface" not in without_new_defaults(asked.model_dump(mode="json"))
    asked = asked.model_copy(update={"surface": SurfaceOptions()})
    assert "surface" in without_new_defaults(asked.model_dump(mode="json"))


def test_histograms_have_the_bins_that_training_counts_in_and_add_up() -> None:
    assert (LOWEST, HIGHEST) == (BINS_PER_DECADE * FIRST_DECADE, BINS_PER_DECADE * LAST_DECADE)
    counts = [0] * (HIGHEST - LOWEST)
    counts[-LOWEST] = 3  # from 1 on
    counts[-LOWEST + 2] = 1
    one = Histogram.of(counts)
    assert one == Histogram(first=0, counts=[3, 0, 1])
    assert one is not None
    assert [(low, count) for low, _, count in one.bins()] == [(1.0, 3), (10 ** (1 / 8), 0), (10 ** (2 / 8), 1)]
    other = Histogram(first=-2, counts=[5])
    assert Histogram.total([one, other]) == Histogram(first=-2, counts=[5, 0, 3, 0, 1])
    assert Histogram.of([0, 0]) is Histogram.total([]) is None
