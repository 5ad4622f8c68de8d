"""The messages between the process of an attempt and its worker: small frozen values with a tag, as JSON.

JSON, and no pickles: every message is parsed and validated. Torch-free, since the worker imports it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from wbar.jobs import MetricsPoint, Progress
from wbar.scores import Score
from wbar_training.outcome import Outcome

# Why training is to stop. After `finish` the job goes on without more steps: what it has is averaged, compared, delivered.
StopReason = Literal["cancel", "pause", "drain", "finish"]
LogLevel = Literal["info", "warning", "error"]


class _Message(BaseModel):
    # Every number is finite: JSON has no others. A loss that is not ends the job, or is null where it is a point of a plot.
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProgressMade(_Message):
    """How far the job is; the answer to it is a `Stop`, or silence."""

    type: Literal["progress"] = "progress"
    progress: Progress


class MetricsRecorded(_Message):
    """New points of the training series, oldest first."""

    type: Literal["metrics"] = "metrics"
    points: tuple[MetricsPoint, ...]


class SnapshotTaken(_Message):
    """Snapshot n lies at `path`; sent again by an attempt that goes on from a state after it."""

    type: Literal["snapshot"] = "snapshot"
    n: int
    step: int
    path: str
    score: Score


class AverageEvaluated(_Message):
    """The curve's point n: the mean of n points."""

    type: Literal["averaged"] = "averaged"
    n: int
    score: Score


class StateSaved(_Message):
    """A resumable state lies at `path`. durable: the end of a phase, meant for the blob store."""

    type: Literal["saved"] = "saved"
    path: str
    step: int
    durable: bool


class LogLine(_Message):
    """An entry for the job's log."""

    type: Literal["log"] = "log"
    level: LogLevel
    message: str


class Succeeded(_Message):
    """The attempt's last message: what came of it, and where the files lie."""

    type: Literal["succeeded"] = "succeeded"
    outcome: Outcome


class Stopped(_Message):
    """The attempt stopped because it was asked to; a resumable state lies on disk unless the job was cancelled."""

    type: Literal["stopped"] = "stopped"
    reason: StopReason


class AtMeeting(_Message):
    """The attempt ended at a meeting: another one goes on once the other replicas have come to it. n: the snapshot."""

    type: Literal["meeting"] = "meeting"
    n: int


class Failed(_Message):
    """The job cannot be done: another attempt would fail alike."""

    type: Literal["failed"] = "failed"
    code: str
    message: str


class Crashed(_Message):
    """An unforeseen error ended the attempt: the worker decides whether to try again.

    cause: `outside` where something else ended its process; `memory` where the system had too little for it.
    """

    type: Literal["crashed"] = "crashed"
    why: str
    cause: Literal["itself", "memory", "outside"] = "itself"


class Stop(_Message):
    """From the worker to the attempt: stop at the next step."""

    type: Literal["stop"] = "stop"
    reason: StopReason


Ending = Succeeded | Stopped | AtMeeting | Failed | Crashed
Report = ProgressMade | MetricsRecorded | SnapshotTaken | AverageEvaluated | StateSaved | LogLine
FromAttempt: TypeAdapter[Report | Ending] = TypeAdapter(Annotated[Report | Ending, Field(discriminator="type")])
