"""The training series: losses and norms gathered on the device, read now and then, checked, and made into points."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wbar.errors import Diverged
from wbar.jobs import MetricsPoint
from wbar_averaging import Position, pull_loss
from wbar_training.step import StepResult

POINTS = 1000  # about how many points a job's metrics series has, whatever its length


@dataclass(frozen=True)
class _Step:
    """One step that was not read yet. pull: its λ."""

    position: Position
    result: StepResult
    images: int
    pull: float


class Meter:
    """Gathers the steps' results on the device without waiting for it, and reads them together.

    total_steps: of the job; the number of steps that a point spans follows from it.
    rate_field: the option to lower when the loss diverges, by phase.
    tell: called with the points that a check has made.
    scaled: whether the precision is float16, where a gradient may overflow without harm.
    """

    def __init__(
        self,
        total_steps: int,
        rate_field: Callable[[str], str],
        tell: Callable[[list[MetricsPoint]], None],
        scaled: bool = False,
    ) -> None:
        self._rate_field, self._tell = rate_field, tell
        self.scaled = scaled
        self._pending: list[_Step] = []
        # Read since the last point; part of the resumable state.
        self._sum, self._count, self._right, self._seen = 0.0, 0, 0.0, 0
        self._images, self._since = 0, time.monotonic()
        self.every = max(1, -(-total_steps // POINTS))
        self.points: list[MetricsPoint] = []  # all so far: an attempt that goes on tells them again
        self.loss: float | None = None
        self.images_per_second: float | None = None
        self.diverged_at: Position | None = None  # of the first step whose loss or norm is not finite

    def add(self, position: Position, result: StepResult, images: int, pull: float) -> None:
        """Record one step's result, without waiting for the device; with its norms it ends a point.

        images: of the step's batch.
        pull: the strength λ of its pull.
        """
        self._pending.append(_Step(position, result, images, pull))
        self._images += images

    def check(self) -> None:
        """Read what was gathered since the last check, and tell the points in it; waits for the device.

        Raises Diverged at the first loss or norm that is not finite; the points before it are told.
        """
        if not self._pending:
            return
        pending, values = self._pending, _read([step.result for step in self._pending])
        now = time.monotonic()
        if now > self._since:
            self.images_per_second = self._images / (now - self._since)
        self._pending, self._images, self._since = [], 0, now
        points: list[MetricsPoint] = []
        try:
            for step, (loss, right, norm, distance) in zip(pending, values, strict=True):
                self._take(step, loss, right)
                if step.result.norm is not None:
                    points.append(self._point(step, norm, distance))
        finally:
            self.points += points
            if points:
                self._tell(points)
        self.loss = sum(loss for loss, *_ in values) / len(values)

    def _take(self, step: _Step, loss: float, right: float) -> None:
        if not math.isfinite(loss):
            position = self.diverged_at = step.position
            raise Diverged(
                f"the loss became {loss} {self._place(position)}, for example to "
                f"{position.lr / 3:.2g}, or set recipe.grad_clip_norm to 1; snapshots made before are kept"
            )
        self._sum += loss
        self._count += 1
        self._right += right
        self._seen += step.images

    def _place(self, position: Position) -> str:
        return (
            f"at step {position.step + 1} (cycle {position.cycle}, {position.phase} phase, learning rate {position.lr:g}): "
            f"lower {self._rate_field(position.phase)}"
        )

    def forget(self) -> None:
        """Begin the next point anew, after steps that diverged."""
        self._pending, self.diverged_at = [], None
        self._sum, self._count, self._right, self._seen = 0.0, 0, 0.0, 0

    def pause(self) -> None:
        """Begin the measurement of images/s anew, after work that was not training steps."""
        self._images, self._since = 0, time.monotonic()

    def _point(self, step: _Step, norm: float, distance: float) -> MetricsPoint:
        """Return the point that ends with this step: the mean loss since the one before.

        norm: of the training loss's gradient. distance: ‖w − w̄‖.
        """
        position = step.position
        # Of scaled gradients: the step was left out, and the next scale is smaller.
        overflowed = self.scaled and not math.isfinite(norm)
        if not (math.isfinite(norm) or overflowed) or not math.isfinite(distance):
            self.diverged_at = position
            raise Diverged(f"the gradient's norm became {norm} {self._place(position)}; snapshots made before are kept")
        mean, accuracy = self._sum / self._count, self._right / self._seen
        self._sum, self._count, self._right, self._seen = 0.0, 0, 0.0, 0
        return MetricsPoint(
            step=position.step + 1,
            epoch=position.epoch,
            cycle=position.cycle,
            phase=position.phase,
            lr=position.lr,
            loss=mean,
            pull_loss=pull_loss(distance, step.pull),
            accuracy=None if math.isnan(accuracy) else accuracy,
            grad_norm=None if overflowed else norm,
            distance_to_mean=distance,
            images_per_second=self.images_per_second,
        )

    def state_dict(self) -> dict[str, Any]:
        self.check()
        return {"sum": self._sum, "count": self._count, "right": self._right, "seen": self._seen,
                "points": [point.model_dump() for point in self.points]}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sum, self._count = state["sum"], state["count"]
        self._right, self._seen = state["right"], state["seen"]
        self.points = [MetricsPoint.model_validate(point) for point in state["points"]]


def _read(results: list[StepResult]) -> list[tuple[float, float, float, float]]:
    """Return loss, right answers, gradient norm and distance of each step; 0 for a norm that was not asked for.

    One transfer for all: each would wait for the device.
    """
    columns: list[list[Tensor]] = [
        [result.loss for result in results],
        [result.correct for result in results],
        [result.norm for result in results if result.norm is not None],
        [result.distance for result in results if result.distance is not None],
    ]
    values = iter(torch.cat([torch.stack(column).double() for column in columns if column]).tolist())
    losses, rights, norms, distances = ([next(values) for _ in column] for column in columns)
    rest = iter(zip(norms, distances, strict=True))
    return [
        (loss, right, *(next(rest) if result.norm is not None else (0.0, 0.0)))
        for result, loss, right in zip(results, losses, rights, strict=True)
    ]
