"""The training series: losses gathered on the device, checked for divergence, made into points now and then."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wbar.errors import Diverged
from wbar.jobs import MetricsPoint
from wbar_averaging import Position
from wbar_training.step import StepResult

POINTS = 1000  # about how many points a job's metrics series has, whatever its length


class Meter:
    """Sums losses on the device without waiting for it, and reads them at every point and heartbeat.

    total_steps: of the job; the number of steps that a point spans follows from it.
    rate_field: the option to lower when the loss diverges, by phase.
    scaled: whether the precision is float16, where a gradient may overflow without harm.
    """

    def __init__(self, total_steps: int, rate_field: Callable[[str], str], scaled: bool = False) -> None:
        self._rate_field = rate_field
        self.scaled = scaled
        self._pending: list[tuple[Position, Tensor, Tensor, int]] = []
        # Read since the last point; part of the resumable state.
        self._sum, self._count, self._right, self._seen = 0.0, 0, 0.0, 0
        self._images, self._since = 0, time.monotonic()
        self.every = max(1, -(-total_steps // POINTS))
        self.points: list[MetricsPoint] = []  # all so far: an attempt that goes on tells them again
        self.loss: float | None = None
        self.images_per_second: float | None = None

    def add(self, position: Position, result: StepResult, images: int) -> None:
        """Record one step's result, without waiting for the device. images: of the step's batch."""
        self._pending.append((position, result.loss, result.correct, images))
        self._images += images

    def check(self) -> None:
        """Read the losses gathered since the last check. Raises Diverged at the first that is not finite."""
        if not self._pending:
            return
        values = torch.stack([loss for _, loss, _, _ in self._pending]).double().cpu()
        now = time.monotonic()
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            position = self._pending[int((~finite).nonzero()[0])][0]
            raise Diverged(
                f"the loss became {values[~finite][0].item()} {self._place(position)}, for example to "
                f"{position.lr / 3:.2g}, or set recipe.grad_clip_norm to 1; snapshots made before are kept"
            )
        self._sum += values.sum().item()
        self._count += len(values)
        self._right += torch.stack([right for _, _, right, _ in self._pending]).double().sum().item()
        self._seen += sum(images for *_, images in self._pending)
        self.loss = values.mean().item()
        if now > self._since:
            self.images_per_second = self._images / (now - self._since)
        self._pending, self._images, self._since = [], 0, now

    def _place(self, position: Position) -> str:
        return (
            f"at step {position.step + 1} (cycle {position.cycle}, {position.phase} phase, learning rate {position.lr:g}): "
            f"lower {self._rate_field(position.phase)}"
        )

    def pause(self) -> None:
        """Begin the measurement of images/s anew, after work that was not training steps."""
        self._images, self._since = 0, time.monotonic()

    def point(self, position: Position, grad_norm: float, distance: float, pull_loss: float) -> MetricsPoint:
        """Return the metrics point that ends at `position`: the mean loss since the one before.

        grad_norm: of the training loss's gradient.
        distance: ‖w − w̄‖.
        pull_loss: λ‖w̄ − w‖².

        Raises Diverged if one of them is not finite.
        """
        self.check()
        overflowed = self.scaled and not math.isfinite(
            grad_norm
        )  # the step was left out, and the next scale is smaller
        if not (math.isfinite(grad_norm) or overflowed) or not math.isfinite(distance):
            raise Diverged(
                f"the gradient's norm became {grad_norm} {self._place(position)}; snapshots made before are kept"
            )
        mean, accuracy = self._sum / self._count, self._right / self._seen
        self._sum, self._count, self._right, self._seen = 0.0, 0, 0.0, 0
        point = MetricsPoint(
            step=position.step + 1,
            epoch=position.epoch,
            cycle=position.cycle,
            phase=position.phase,
            lr=position.lr,
            loss=mean,
            pull_loss=pull_loss,
            accuracy=accuracy,
            grad_norm=None if overflowed else grad_norm,
            distance_to_mean=distance,
            images_per_second=self.images_per_second,
        )
        self.points.append(point)
        return point

    def state_dict(self) -> dict[str, Any]:
        self.check()
        return {"sum": self._sum, "count": self._count, "right": self._right, "seen": self._seen,
                "points": [point.model_dump() for point in self.points]}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sum, self._count = state["sum"], state["count"]
        self._right, self._seen = state["right"], state["seen"]
        self.points = [MetricsPoint.model_validate(point) for point in state["points"]]
