"""What the loop tells about itself: losses gathered on the device, checked for divergence, reported now and then."""

import math
import time
from typing import Any, Protocol

import torch
from torch import Tensor

from wbar.errors import Diverged
from wbar.jobs import MetricsPoint, Progress, Score, StepPhase
from wbar_averaging import Position
from wbar_training.step import Taken

POINTS = 1000  # about so many points in a job's metrics series, whatever its length


class Reporter(Protocol):
    """Where a job's story goes. Only `heartbeat` answers: a reason to stop, or None to keep going."""

    def heartbeat(self, progress: Progress) -> str | None: ...
    def metrics(self, points: list[MetricsPoint]) -> None: ...
    def snapshot(self, n: int, step: int, path: str, score: Score) -> None: ...
    def averaged(self, n: int, score: Score) -> None: ...
    def saved(self, path: str, step: int, durable: bool) -> None: ...
    def log(self, level: str, message: str) -> None: ...


class Stopped(Exception):
    """The reporter asked to stop (cancel, pause, drain); a resumable state lies on disk."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Meter:
    """Sums losses on the device without waiting for it, and reads them when somebody should know."""

    def __init__(self, total_steps: int, scaled: bool = False) -> None:
        self.scaled = scaled  # float16: a gradient may overflow without harm
        self._pending: list[tuple[Position, Tensor, Tensor, int]] = []
        # Read since the last point; part of the resumable state.
        self._sum, self._count, self._right, self._seen = 0.0, 0, 0.0, 0
        self._images, self._since = 0, time.monotonic()
        self.every = max(1, -(-total_steps // POINTS))
        self.loss: float | None = None
        self.images_per_second: float | None = None

    def add(self, position: Position, taken: Taken, images: int) -> None:
        self._pending.append((position, taken.loss, taken.correct, images))
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
                f"the loss became {values[~finite][0].item()} at step {position.step + 1} (cycle {position.cycle}, "
                f"{position.phase} phase, learning rate {position.lr:g}): lower method.{position.phase}.lr, for example "
                f"to {position.lr / 3:.2g}, or set recipe.grad_clip_norm to 1; snapshots made before are kept"
            )
        self._sum += values.sum().item()
        self._count += len(values)
        self._right += torch.stack([right for _, _, right, _ in self._pending]).double().sum().item()
        self._seen += sum(images for *_, images in self._pending)
        self.loss = values.mean().item()
        if now > self._since:
            self.images_per_second = self._images / (now - self._since)
        self._pending, self._images, self._since = [], 0, now

    def pause(self) -> None:
        """Time spent on other things than training steps does not count into images/s."""
        self._images, self._since = 0, time.monotonic()

    def point(self, position: Position, grad_norm: float, distance: float, pull_loss: float) -> MetricsPoint:
        """The metrics point that ends at `position`: the mean loss since the one before."""
        self.check()
        overflowed = self.scaled and not math.isfinite(
            grad_norm
        )  # the step was left out, and the next scale is smaller
        if not (math.isfinite(grad_norm) or overflowed) or not math.isfinite(distance):
            raise Diverged(
                f"the gradient's norm became {grad_norm} at step {position.step + 1} (cycle {position.cycle}, "
                f"{position.phase} phase, learning rate {position.lr:g}): lower method.{position.phase}.lr; snapshots made "
                "before are kept"
            )
        mean, accuracy = self._sum / self._count, self._right / self._seen
        self._sum, self._count, self._right, self._seen = 0.0, 0, 0.0, 0
        return MetricsPoint(
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

    def state_dict(self) -> dict[str, Any]:
        self.check()
        return {"sum": self._sum, "count": self._count, "right": self._right, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sum, self._count = state["sum"], state["count"]
        self._right, self._seen = state["right"], state["seen"]


class Clock:
    """Fraction done and time left, from the images that each part of the job pushes through the network.

    A training image costs about three forward passes (one forward, twice that backward).
    """

    TRAINING = 3.0

    def __init__(self, total: float, done: float, cycles: int, total_steps: int) -> None:
        self.total, self.done = total, done
        self.cycles, self.total_steps = cycles, total_steps
        self._began, self._initial = time.monotonic(), done

    def spend(self, images: int, training: bool) -> None:
        self.done += images * (self.TRAINING if training else 1.0)

    def progress(self, phase: StepPhase, position: Position | None, meter: Meter | None, step: int) -> Progress:
        elapsed, worked = time.monotonic() - self._began, self.done - self._initial
        left = max(0.0, self.total - self.done)
        return Progress(
            phase=phase,
            cycle=position.cycle if position else 0,
            cycles=self.cycles,
            epoch=position.epoch if position else 0,
            step=step,
            total_steps=self.total_steps,
            fraction=round(min(1.0, self.done / self.total), 4),
            images_per_second=round(meter.images_per_second, 1) if meter and meter.images_per_second else None,
            eta_seconds=round(left * elapsed / worked, 1) if worked > 0 and elapsed > 0.2 else None,
            learning_rate=position.lr if position else None,
            loss=meter.loss if meter else None,
        )


class Aside:
    """The reporter of a training that runs after the job's own, the control: it goes on with the job's progress, and its
    snapshots, metrics and states are nobody's but its own."""

    def __init__(self, reporter: Reporter, clock: Clock) -> None:
        self._reporter, self._total = reporter, clock.total_steps
        self._before, self._cycles = min(1.0, clock.done / clock.total), clock.cycles

    def heartbeat(self, progress: Progress) -> str | None:
        whole = {
            "step": self._total - progress.total_steps + progress.step,
            "total_steps": self._total,
            "fraction": round(self._before + (1 - self._before) * progress.fraction, 4),
            "cycle": self._cycles,
            "cycles": self._cycles,
        }
        return self._reporter.heartbeat(progress.model_copy(update=whole))

    def saved(self, path: str, step: int, durable: bool) -> None:  # noqa: ARG002  # never durable here
        self._reporter.saved(
            path, step, False
        )  # on this host only: elsewhere the control begins again, to the same bits

    def metrics(self, points: list[MetricsPoint]) -> None: ...
    def log(self, level: str, message: str) -> None: ...
    def snapshot(self, n: int, step: int, path: str, score: Score) -> None: ...
    def averaged(self, n: int, score: Score) -> None: ...
