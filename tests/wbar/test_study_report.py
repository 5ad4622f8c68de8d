"""The report of a study, by hand: minima with patience, seconds of training, epochs, groups over seeds."""

from dataclasses import replace

import pytest

from tests.store.rows import point, result
from wbar.scores import Score
from wbar.studies import StudyChild, StudySettings, scaled_rate
from wbar.study_report import Recorded, report_of, settled_minimum
from wbar.study_results import ValidationPoint


def validation(*losses: float) -> list[ValidationPoint]:
    return [
        ValidationPoint(epoch=n, step=n, seconds=float(n), loss=loss, accuracy=0.5) for n, loss in enumerate(losses, 1)
    ]


def test_the_minimum_is_the_one_that_early_stopping_finds() -> None:
    points = validation(3, 1, 2, 2, 2, 0.5)
    assert settled_minimum(points, 3) == (points[1], True)
    assert settled_minimum(points, 5) == (points[5], False)
    assert settled_minimum([], 5) == (None, False)


@pytest.mark.parametrize(("scaling", "expected"), [("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)])
def test_a_rate_follows_from_the_batch(scaling: str, expected: float) -> None:
    assert scaled_rate(0.1, scaling, 256, 64) == pytest.approx(expected)  # type: ignore[arg-type]


def recorded(n: int, batch: int, seed: int, status: str = "succeeded") -> Recorded:
    settings = StudySettings(batch_size=batch, seed=seed)
    error = "diverged" if status == "failed" else None
    child = StudyChild(
        n=n, job=f"job_{n}", settings=settings, status=status, fraction=1.0, error=error, accuracy=0.5, loss=0.7
    )  # type: ignore[arg-type]
    # Two epochs of 100 images: the first at 100 images/s, the second at 50.
    steps = 100 // batch
    points = [
        point(step, loss=float(step)).model_copy(update={"epoch": epoch, "images_per_second": 100 / epoch})
        for epoch in (1, 2)
        for step in (epoch * steps,)
    ]
    snapshots = [(steps, Score(accuracy=0.4, loss=2.0)), (2 * steps, Score(accuracy=0.6, loss=1.0 + seed))]
    ended = result() if status == "succeeded" else None
    return Recorded(child, batch, 1, seed, ended, points, snapshots)


def test_seconds_are_those_of_training_and_groups_are_over_seeds() -> None:
    made = report_of("study_1", "ended", 100, [recorded(1, 10, 0), recorded(2, 10, 1), recorded(3, 50, 0, "failed")])
    first = made.jobs[0]
    assert [(epoch.epoch, epoch.seconds, epoch.val_loss) for epoch in first.epochs] == [(1, 1.0, 2.0), (2, 2.0, 1.0)]
    assert first.minimum == ValidationPoint(epoch=2.0, step=20, seconds=3.0, loss=1.0, accuracy=0.6)
    assert first.images_per_second == 75.0
    ten, fifty = made.groups
    assert (ten.jobs, ten.failed, fifty.jobs, fifty.failed) == (2, 0, 1, 1)
    assert ten.min_val_loss is not None
    assert (ten.min_val_loss.mean, ten.min_val_loss.error) == (1.5, pytest.approx(0.5))
    assert fifty.loss is None, "a job that diverged has no result"
    assert fifty.min_val_loss is not None
    assert fifty.min_val_loss.error is None
    assert [(one.devices, one.batch_size, one.jobs) for one in made.throughput] == [(1, 10, 2), (1, 50, 1)]


def test_points_of_unequal_length_count_by_their_steps() -> None:
    one = recorded(1, 10, 0)
    points = [
        point(step, loss=loss).model_copy(update={"epoch": 1, "accuracy": accuracy})
        for step, loss, accuracy in ((9, 1.0, 0.5), (10, 2.0, 0.9))
    ]
    first = report_of("study_1", "ended", 100, [replace(one, points=points)]).jobs[0].epochs[0]
    assert (first.train_loss, first.train_accuracy) == (pytest.approx(1.1), pytest.approx(0.54))


def test_after_a_back_off_epochs_end_where_their_points_do() -> None:
    one = recorded(1, 10, 0)
    assert one.result is not None
    points = [
        point(step, loss=1.0).model_copy(update={"epoch": epoch, "images_per_second": 100})
        for step, epoch in ((10, 1), (15, 2), (25, 3), (35, 4))
    ]
    snapshots = [
        (25, Score(accuracy=0.4, loss=2.0)),
        (30, Score(accuracy=0.5, loss=9.0)),
        (35, Score(accuracy=0.6, loss=1.0)),
    ]
    ended = one.result.model_copy(update={"back_offs": 1})
    made = report_of("study_1", "ended", 100, [replace(one, points=points, snapshots=snapshots, result=ended)])
    assert [(epoch.val_loss, epoch.seconds) for epoch in made.jobs[0].epochs] == [
        (None, pytest.approx(1.0)), (None, pytest.approx(0.5)), (2.0, pytest.approx(1.0)), (1.0, pytest.approx(1.0)),
    ]  # fmt: skip


def test_a_study_without_its_jobs_has_an_empty_report() -> None:
    child = StudyChild(
        n=1,
        job="job_1",
        settings=StudySettings(seed=1),
        status="deleted",
        fraction=0,
        error=None,
        accuracy=None,
        loss=None,
    )
    made = report_of("study_1", "ended", None, [Recorded(child, None, None, 1, None, (), ())])
    assert made.jobs[0].minimum is None
    assert made.throughput == []
