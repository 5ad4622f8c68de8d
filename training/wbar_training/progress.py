"""The progress of a job and its remaining time, from the images that each part of it sends through the network.

A training image costs about three forward passes: one forward, twice that backward.
"""

import time
from dataclasses import dataclass

from wbar.jobs import MetricsPoint, Progress, StepPhase
from wbar.schedule import Schedule
from wbar.scores import Score
from wbar_averaging import Position
from wbar_training import head_probe, normalization_probe
from wbar_training.analysis import flatness_images
from wbar_training.averages.average import Average
from wbar_training.averages.choice import TRAINING, ChoiceLimits
from wbar_training.evaluator import BATCH_NORM_IMAGES
from wbar_training.messages import LogLevel, StopReason
from wbar_training.meter import Meter
from wbar_training.rate_probe import FACTORS, IMAGES, STEPS
from wbar_training.reporter import Reporter
from wbar_training.setup import Setup


@dataclass(frozen=True)
class Cost:
    """All the work of a job in forward passes of one image.

    before, after: of the work before and after training.
    training: of one step.
    per_snapshot: of one snapshot.
    other_steps: optimizer steps beside the schedule's: of the control, and of attempts that were backed off from.
    """

    before: float
    training: float
    per_snapshot: float
    after: float
    other_steps: int

    @classmethod
    def of(
        cls,
        setup: Setup,
        schedule: Schedule,
        average: Average,
        discarded_steps: int,
        limits: ChoiceLimits,
        repeats: bool,
    ) -> "Cost":
        """Return the cost of a schedule on this job's images.

        limits: what the choice of the average may cost.
        repeats: whether a control takes as many steps again.
        """
        spec, evaluator, data = setup.spec, setup.evaluator, setup.data
        recompute, held_out = evaluator.recomputed_images, len(data.report)
        train_score, method = min(BATCH_NORM_IMAGES, len(data.train)), spec.method
        images = min(len(data.train), schedule.steps_per_epoch * setup.plan.batch_size)
        training = TRAINING * images / schedule.steps_per_epoch
        both = data.evaluated_images
        before = float(both + (both + recompute if recompute else 0) + train_score)
        before += training * head_probe.steps_of(setup, schedule)
        before += 4 * min(normalization_probe.IMAGES, len(data.train)) if spec.find_normalization else 0
        if getattr(method, "probe_rate", False) is True:
            before += len(FACTORS) * (STEPS * training + 2 * min(IMAGES, len(data.train)))
        before += recompute + train_score if getattr(method, "back_off", False) else 0  # at the first snapshot
        after = float(both + recompute + spec.swag * (recompute + both))
        after += flatness_images(setup) if spec.flatness else 0
        after += average.selection_forwards(limits)
        after += 0 if data.task.averages_answers else len(schedule.snapshots) * both  # the members again, side by side
        after += len(method.interpolate.points()) * (both + recompute) if method.interpolate is not None else 0
        per_snapshot = float(both + held_out + recompute)
        if setup.plan.recipe.early_stopping is not None:
            epochs = schedule.total_steps / schedule.steps_per_epoch
            per_snapshot += limits.one_mean * (epochs / len(schedule.snapshots) if schedule.stops_by == "epochs" else 1)
        control = schedule.total_steps if getattr(method, "control", False) and repeats else 0
        return cls(
            before=before,
            training=training,
            per_snapshot=per_snapshot,
            after=after + training * control,
            other_steps=control + discarded_steps,
        )


class ProgressEstimate:
    """The fraction done and the time left.

    steps: of the schedule that are taken already.
    begun: whether the start is evaluated.
    """

    def __init__(self, cost: Cost, schedule: Schedule, steps: int, begun: bool) -> None:
        snapshots = schedule.snapshots
        self.total = (
            cost.before + cost.training * schedule.total_steps + len(snapshots) * cost.per_snapshot + cost.after
        )
        self.done = cost.training * steps + sum(mark <= steps for mark in snapshots) * cost.per_snapshot
        self.done += cost.before if begun else 0
        self.cycles, self.total_steps = len(snapshots), schedule.total_steps + cost.other_steps
        self._began, self._initial = time.monotonic(), self.done
        self.least = 0.0  # of the fraction: what was reported once is not taken back

    def trained(self, images: int) -> None:
        """Count `images` images that were trained on."""
        self.done += TRAINING * images

    def evaluated(self, images: int) -> None:
        """Count `images` images that were through the network once."""
        self.done += images

    @property
    def fraction(self) -> float:
        """The share of the work that is done, in [0, 1]."""
        return max(self.least, min(1.0, self.done / self.total))

    def progress(self, phase: StepPhase, position: Position | None, meter: Meter, step: int) -> Progress:
        """Return the progress to report. step: optimizer steps taken in all."""
        elapsed, worked = time.monotonic() - self._began, self.done - self._initial
        left = max(0.0, self.total - self.done)
        return Progress(
            phase=phase,
            cycle=position.cycle if position else 0,
            cycles=self.cycles,
            epoch=position.epoch if position else 0,
            step=step,
            total_steps=self.total_steps,
            fraction=round(self.fraction, 4),
            images_per_second=round(meter.images_per_second, 1) if meter.images_per_second else None,
            eta_seconds=round(left * elapsed / worked, 1) if worked > 0 and elapsed > 0.2 else None,
            learning_rate=position.lr if position else None,
            loss=meter.loss,
        )


class ControlReporter:
    """The reporter of the control, which trains after the job: its progress goes on where the job's stands.

    Its snapshots, metrics and log are not reported. Its states stay on this host: elsewhere the control begins again,
    and ends in the same bits.
    """

    def __init__(self, reporter: Reporter, estimate: ProgressEstimate) -> None:
        self._reporter, self._total = reporter, estimate.total_steps
        self._before, self._cycles = estimate.fraction, estimate.cycles

    def heartbeat(self, progress: Progress) -> StopReason | None:
        whole = {
            "step": self._total - progress.total_steps + progress.step,
            "total_steps": self._total,
            "fraction": round(self._before + (1 - self._before) * progress.fraction, 4),
            "cycle": self._cycles,
            "cycles": self._cycles,
        }
        return self._reporter.heartbeat(progress.model_copy(update=whole))

    def saved(self, path: str, step: int, durable: bool) -> None:  # noqa: ARG002  # never durable here
        self._reporter.saved(path, step, False)

    def metrics(self, points: list[MetricsPoint]) -> None: ...
    def log(self, level: LogLevel, message: str) -> None: ...
    def snapshot(self, n: int, step: int, path: str, score: Score) -> None: ...
    def averaged(self, n: int, score: Score) -> None: ...
