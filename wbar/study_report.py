"""The report of a study: what its jobs measured, in the quantities by which the literature compares batch sizes.

Keskar et al. 2017 (sharpness against the batch), Hoffer et al. 2017 (distance from the start), Goyal et al. 2017 (linear
scaling of the rate), Masters & Luschi 2018 (loss by batch and rate). Everything is from what the jobs recorded; a job that
failed, diverged or is still at work has the part that it got to.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median, stdev
from typing import Any

from wbar.jobs import MetricsPoint
from wbar.loss_surface import Histogram
from wbar.measures import MEASURES, Measure
from wbar.results import JobResult
from wbar.schedule import steps_per_epoch
from wbar.scores import Score
from wbar.studies import StudyChild, StudyStatus
from wbar.study_results import (
    Spread,
    StudyEpoch,
    StudyFlatness,
    StudyGroup,
    StudyJobReport,
    StudyReport,
    Throughput,
    ValidationPoint,
)

PATIENCE = 5  # epochs


@dataclass(frozen=True)
class Recorded:
    """The records of one job of a study. snapshots: the step of each, and its score on held-out images."""

    child: StudyChild
    batch_size: int | None
    devices: int | None
    seed: int | None
    result: JobResult | None
    points: Sequence[MetricsPoint]
    snapshots: Sequence[tuple[int, Score]]


def report_of(
    study: str,
    status: StudyStatus,
    train_images: int | None,
    recorded: Sequence[Recorded],
    patience: float = PATIENCE,
    measure: Measure = MEASURES["classification"],
) -> StudyReport:
    """Make the report of a study. patience: in epochs. measure: the score of its jobs' task."""
    made = [_job(one, train_images or 1, patience) for one in recorded]
    jobs = [_compared(job, _smallest(job, made)) for job in made]
    return StudyReport(
        study=study,
        status=status,
        patience=patience,
        train_images=train_images,
        score=measure.name,
        jobs=jobs,
        groups=_groups(jobs),
        throughput=_throughput(jobs),
    )


def settled_minimum(
    points: Sequence[ValidationPoint], patience: float, averaged: bool = False
) -> tuple[ValidationPoint | None, bool]:
    """Return the lowest loss that early stopping finds, and whether it stopped: `patience` epochs without a lower one.

    averaged: by the loss of w̄ instead of that of the snapshots.
    """
    best, lowest = None, math.inf
    for point in points:
        loss = point.averaged_loss if averaged else point.loss
        if loss is not None and loss < lowest:
            best, lowest = point, loss
        elif best is not None and point.epoch - best.epoch >= patience:
            return best, True
    return best, False


def _averaged(result: JobResult | None, snapshots: int) -> list[tuple[float | None, float | None]]:
    """Return loss and accuracy of w̄ at each snapshot, where the curve has a point for each; the start's may come first."""
    curve = result.curve if result else []
    if len(curve) not in (snapshots, snapshots + 1):
        return [(None, None)] * snapshots
    return [(point.loss, point.accuracy) for point in curve[len(curve) - snapshots :]]


def _job(recorded: Recorded, train_images: int, patience: float) -> StudyJobReport:
    child, result = recorded.child, recorded.result
    batch, devices = recorded.batch_size, recorded.devices
    per_epoch = steps_per_epoch(train_images, batch, devices or 1) if batch else 1
    clock = _Clock(recorded.points, batch or 1)
    snapshots = sorted(recorded.snapshots, key=lambda one: one[0])
    averaged = _averaged(result, len(snapshots))
    validation = [
        ValidationPoint(
            epoch=step / per_epoch,
            step=step,
            seconds=clock.at(step),
            loss=score.loss,
            accuracy=score.accuracy,
            averaged_loss=mean_loss,
            averaged_accuracy=mean_accuracy,
        )
        for (step, score), (mean_loss, mean_accuracy) in zip(snapshots, averaged, strict=True)
    ]
    minimum, stopped = settled_minimum(validation, patience)
    minimum_averaged, _ = settled_minimum(validation, patience, averaged=True)
    speeds = [point.images_per_second for point in recorded.points if point.images_per_second]
    speed = median(speeds) if speeds else None
    scores = result.metrics if result else None
    return StudyJobReport(
        n=child.n,
        job=child.job,
        settings=child.settings,
        status=child.status,
        error=child.error,
        batch_size=batch,
        lr=max((point.lr for point in recorded.points), default=None),
        devices=devices,
        seed=recorded.seed,
        images_per_second=speed,
        seconds_per_epoch=train_images / speed if speed else None,
        minimum=minimum,
        minimum_averaged=minimum_averaged,
        stopped=stopped,
        accuracy=scores.averaged.accuracy if scores else None,
        loss=scores.averaged.loss if scores else None,
        last_accuracy=validation[-1].accuracy if validation else None,
        last_loss=validation[-1].loss if validation else None,
        verdict=result.verdict if result else None,
        validation=validation,
        epochs=list(_epochs(recorded, validation, clock, per_epoch)),
        flatness=_flatness(result),
    )


class _Clock:
    """Seconds of training by the step, from the speed at each point of the series: pauses and restarts do not count."""

    def __init__(self, points: Sequence[MetricsPoint], batch: int) -> None:
        self._marks: list[tuple[int, float]] = [(0, 0.0)]
        known = next((point.images_per_second for point in points if point.images_per_second), None)
        for point in points:
            known = point.images_per_second or known
            if known:
                step, seconds = self._marks[-1]
                self._marks.append((point.step, seconds + (point.step - step) * batch / known))

    def at(self, step: int) -> float | None:
        """Return the seconds until a step; None where nothing was measured so far."""
        before = [mark for mark in self._marks if mark[0] <= step]
        after = next((mark for mark in self._marks if mark[0] > step), None)
        (first, seconds) = before[-1]
        if after is None:
            return seconds if len(self._marks) > 1 else None
        return seconds + (after[1] - seconds) * (step - first) / (after[0] - first)


def _epochs(
    recorded: Recorded, validation: Sequence[ValidationPoint], clock: _Clock, per_epoch: int
) -> Iterator[StudyEpoch]:
    ends = {point.step: point for point in validation}
    flatness = recorded.result.flatness if recorded.result else None
    moved = {point.epoch: point for point in flatness.epochs} if flatness else {}
    backed_off = recorded.result is not None and recorded.result.back_offs > 0
    before, ended = 0, 0
    for epoch, group in groupby(recorded.points, key=lambda point: point.epoch):
        points, began = list(group), ended
        weights = [point.step - last for point, last in zip(points, [before, *(p.step for p in points)], strict=False)]
        before = points[-1].step
        total = sum(weights)
        right = [
            (point.accuracy, weight)
            for point, weight in zip(points, weights, strict=True)
            if point.accuracy is not None
        ]
        # A back-off within an epoch moves all that come after it, which then end about where their last point is.
        ended = before if backed_off else epoch * per_epoch
        begin, end = clock.at(began), clock.at(ended)
        at_end, distance = ends.get(ended), moved.get(epoch)
        yield StudyEpoch(
            epoch=epoch,
            train_loss=sum(point.loss * weight for point, weight in zip(points, weights, strict=True)) / total,
            train_accuracy=sum(one * weight for one, weight in right) / sum(weight for _, weight in right)
            if right
            else None,
            val_loss=at_end.loss if at_end else None,
            val_accuracy=at_end.accuracy if at_end else None,
            seconds=end - begin if begin is not None and end is not None else None,
            distance=distance.distance if distance else None,
            distance_from_start=distance.distance_from_start if distance else None,
            update_norms=distance.update_norms if distance else None,
            update_histogram=distance.update_histogram if distance else None,
        )


def _flatness(result: JobResult | None) -> StudyFlatness | None:
    found = result.flatness if result else None
    if found is None:
        return None
    return StudyFlatness(
        distance=found.distance,
        distance_ratio=None,
        distance_by_layer=found.distance_by_layer,
        sharpness=found.sharpness.get("averaged"),
        sharpness_half=found.sharpness_half.get("averaged"),
        sharpness_last=found.sharpness.get("last"),
        top_eigenvalue=found.top_eigenvalue.get("averaged"),
        interpolation=found.interpolation,
        line=found.line,
        surface=found.surface,
        update_histogram=Histogram.total([one.update_histogram for one in found.epochs if one.update_histogram]),
    )


def _smallest(job: StudyJobReport, jobs: Sequence[StudyJobReport]) -> StudyJobReport | None:
    """Return the job with the smallest batch, of those alike but for batch and rate; None where batches do not vary."""

    def rest(one: StudyJobReport) -> tuple[Any, ...]:
        settings = one.settings
        return settings.fields, settings.change, settings.seed

    mine = set(job.settings.scaling)
    alike = [
        one
        for one in jobs
        if one.settings.batch_size is not None
        and rest(one) == rest(job)
        and (not mine or mine & set(one.settings.scaling))
    ]
    return min(alike, key=lambda one: one.settings.batch_size or 0, default=None)


def _compared(job: StudyJobReport, smallest: StudyJobReport | None) -> StudyJobReport:
    """Return the report of a job with its distances over those of the smallest batch."""
    if smallest is None:
        return job
    theirs = {epoch.epoch: epoch.distance for epoch in smallest.epochs}
    epochs = [
        epoch.model_copy(update={"distance_ratio": _ratio(epoch.distance, theirs.get(epoch.epoch))})
        for epoch in job.epochs
    ]
    flatness = job.flatness
    if flatness is not None:
        whole = smallest.flatness.distance if smallest.flatness else None
        flatness = flatness.model_copy(update={"distance_ratio": _ratio(flatness.distance, whole)})
    return job.model_copy(update={"epochs": epochs, "flatness": flatness})


def _ratio(mine: float | None, theirs: float | None) -> float | None:
    return mine / theirs if mine is not None and theirs else None


def _groups(jobs: Sequence[StudyJobReport]) -> list[StudyGroup]:
    grouped: dict[str, list[StudyJobReport]] = {}
    for job in jobs:
        grouped.setdefault(job.settings.model_copy(update={"seed": None}).model_dump_json(), []).append(job)
    return [_group(members) for members in grouped.values()]


def _group(jobs: Sequence[StudyJobReport]) -> StudyGroup:
    minima = [job.minimum for job in jobs if job.minimum]
    averaged = [job.minimum_averaged for job in jobs if job.minimum_averaged]
    flat = [job.flatness for job in jobs if job.flatness]
    return StudyGroup(
        settings=jobs[0].settings.model_copy(update={"seed": None}),
        jobs=len(jobs),
        failed=sum(job.status == "failed" for job in jobs),
        min_val_loss=_spread([one.loss for one in minima]),
        min_val_epoch=_spread([one.epoch for one in minima]),
        min_val_seconds=_spread([one.seconds for one in minima]),
        min_averaged_loss=_spread([one.averaged_loss for one in averaged]),
        min_averaged_epoch=_spread([one.epoch for one in averaged]),
        min_averaged_seconds=_spread([one.seconds for one in averaged]),
        accuracy=_spread([job.accuracy for job in jobs]),
        loss=_spread([job.loss for job in jobs]),
        seconds_per_epoch=_spread([job.seconds_per_epoch for job in jobs]),
        distance=_spread([one.distance for one in flat]),
        sharpness=_spread([one.sharpness for one in flat]),
        sharpness_half=_spread([one.sharpness_half for one in flat]),
        top_eigenvalue=_spread([one.top_eigenvalue.value for one in flat if one.top_eigenvalue]),
        update_histogram=Histogram.total([one.update_histogram for one in flat if one.update_histogram]),
    )


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(mean=fmean(known), error=stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None)


def _throughput(jobs: Sequence[StudyJobReport]) -> list[Throughput]:
    found: dict[tuple[int, int], list[StudyJobReport]] = {}
    for job in jobs:
        if job.images_per_second and job.seconds_per_epoch and job.batch_size and job.devices:
            found.setdefault((job.devices, job.batch_size), []).append(job)
    return [
        Throughput(
            devices=devices,
            batch_size=batch,
            images_per_second=median(job.images_per_second or 0.0 for job in members),
            seconds_per_epoch=median(job.seconds_per_epoch or 0.0 for job in members),
            jobs=len(members),
        )
        for (devices, batch), members in sorted(found.items())
    ]
