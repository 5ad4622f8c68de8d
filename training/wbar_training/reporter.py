"""The reports of a job while it runs. Only the heartbeat has an answer: a reason to stop.

`Reporter` is the interface that the loop uses; `MessageReporter` turns its calls into messages for another process, and
`deliver` hands those messages to a reporter there.
"""

from collections.abc import Callable
from typing import Protocol

from wbar.jobs import MetricsPoint, Progress
from wbar.scores import Score
from wbar_training.messages import (
    AverageEvaluated,
    LogLevel,
    LogLine,
    MetricsRecorded,
    ProgressMade,
    Report,
    SnapshotTaken,
    StateSaved,
    StopReason,
)


class StopRequested(Exception):
    """Raised when the reporter asks to stop (cancel, pause, drain); unless it was a cancel, a resumable state lies on disk."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


class MeetingReached(Exception):
    """Raised by a replica that has come to a meeting before the others; a resumable state lies on disk."""

    def __init__(self, n: int) -> None:
        super().__init__(f"the replicas meet after snapshot {n}")
        self.n = n


class Reporter(Protocol):
    """The interface for what a job reports while it runs."""

    def heartbeat(self, progress: Progress) -> StopReason | None:
        """Report the progress; returns a reason to stop, or None to keep going."""

    def metrics(self, points: list[MetricsPoint]) -> None:
        """Report new points of the training series, oldest first."""

    def snapshot(self, n: int, step: int, path: str, score: Score) -> None:
        """Report snapshot n, taken after `step` steps, whose file lies at `path`."""

    def averaged(self, n: int, score: Score) -> None:
        """Report point n of the curve: the score of the mean of n points."""

    def saved(self, path: str, step: int, durable: bool) -> None:
        """Report a resumable state at `path`. durable: written at a phase's end, meant for the blob store."""

    def log(self, level: LogLevel, message: str) -> None:
        """Report an entry for the job's log."""


class MessageReporter:
    """A reporter that sends messages. send: sends one, and answers progress with a reason to stop."""

    def __init__(self, send: Callable[[Report], StopReason | None]) -> None:
        self._send = send
        # Kept until the next heartbeat: a message (and a transaction) for each step would take the cores from short steps.
        self._points: list[MetricsPoint] = []

    def heartbeat(self, progress: Progress) -> StopReason | None:
        self._flush()
        return self._send(ProgressMade(progress=progress))

    def metrics(self, points: list[MetricsPoint]) -> None:
        self._points += points

    def _flush(self) -> None:
        if self._points:
            self._send(MetricsRecorded(points=tuple(self._points)))
            self._points = []

    def snapshot(self, n: int, step: int, path: str, score: Score) -> None:
        self._send(SnapshotTaken(n=n, step=step, path=path, score=score))

    def averaged(self, n: int, score: Score) -> None:
        self._send(AverageEvaluated(n=n, score=score))

    def saved(self, path: str, step: int, durable: bool) -> None:
        self._flush()  # an attempt that goes on from this state does not report the steps before it again
        self._send(StateSaved(path=path, step=step, durable=durable))

    def log(self, level: LogLevel, message: str) -> None:
        self._send(LogLine(level=level, message=message))


def deliver(message: Report, reporter: Reporter) -> StopReason | None:
    """Hand a message to `reporter`; returns its answer to progress."""
    match message:
        case ProgressMade():
            return reporter.heartbeat(message.progress)
        case MetricsRecorded():
            reporter.metrics(list(message.points))
        case SnapshotTaken():
            reporter.snapshot(message.n, message.step, message.path, message.score)
        case AverageEvaluated():
            reporter.averaged(message.n, message.score)
        case StateSaved():
            reporter.saved(message.path, message.step, message.durable)
        case LogLine():
            reporter.log(message.level, message.message)
    return None
