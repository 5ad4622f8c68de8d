"""What a worker asks of its children, and what they answer: frozen values both ways. Torch-free.

The messages of an attempt are those of `wbar_training.messages`; here are the requests, and the answers of the other children.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from wbar.checkpoints import CheckpointFacts, Fault
from wbar.spec import JobSpec
from wbar_training.messages import Crashed
from wbar_training.workspace import Workspace
from wbar_worker import processes
from wbar_worker.processes import Entry


@dataclass(frozen=True)
class AttemptRequest:
    """One attempt at a job. gpus: the only devices that its process may see, by their place among the worker's own."""

    spec: JobSpec
    workspace: Workspace
    gpus: tuple[int, ...]


@dataclass(frozen=True)
class ProbeRequest:
    """What is this machine? Asked of a child, since the worker does not import torch."""


@dataclass(frozen=True)
class Limits:
    """Of a child that reads an upload. memory: bytes of heap; seconds: of wall time, and of processor time per core;
    archive_bytes, archive_files: what an archive may unpack to."""

    memory: int
    seconds: float
    archive_bytes: int
    archive_files: int


@dataclass(frozen=True)
class CheckpointUpload:
    """Read the file at `path`, write its tensors to `out`. architecture, num_classes: as the upload named them."""

    path: Path
    out: Path
    architecture: str | None
    num_classes: int | None
    limits: Limits


@dataclass(frozen=True)
class DatasetUpload:
    """Pack the archive or folder at `source`, or the built-in set of that name, to `out`."""

    source: Path | str
    out: Path
    multilabel: bool
    max_train_images: int | None
    limits: Limits


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Message):
    """gpus: how many torch sees; torch: its version."""

    type: Literal["machine"] = "machine"
    gpus: int
    torch: str


class CheckpointFound(_Message):
    """A checkpoint that can be fine-tuned; its tensors lie at `out`."""

    type: Literal["checkpoint"] = "checkpoint"
    facts: CheckpointFacts


class DatasetPacked(_Message):
    """A dataset whose every image was decoded; packed at `out`. images: how many, by split."""

    type: Literal["dataset"] = "dataset"
    classes: list[str]
    images: dict[str, int]
    channels: int
    height: int
    width: int
    many_sizes: bool
    mean: list[float]
    std: list[float]
    held_out: list[int] | None
    warnings: list[str]


class UploadRejected(_Message):
    """It is not what it should be, and trying again would find the same."""

    type: Literal["rejected"] = "rejected"
    fault: Fault


Verdict = CheckpointFound | DatasetPacked | UploadRejected | Crashed
VERDICTS: TypeAdapter[Verdict] = TypeAdapter(Annotated[Verdict, Field(discriminator="type")])
MACHINE = TypeAdapter(Machine)

RUN_ATTEMPT: Entry[AttemptRequest] = Entry("wbar_worker.attempt", "run_attempt")
PROBE: Entry[ProbeRequest] = Entry("wbar_worker.attempt", "probe")
VALIDATE_CHECKPOINT: Entry[CheckpointUpload] = Entry("wbar_worker.validate", "validate_checkpoint")
VALIDATE_DATASET: Entry[DatasetUpload] = Entry("wbar_worker.validate", "validate_dataset")


def warm_up() -> Machine:
    """Start the forkserver (seconds: it imports torch) and learn what devices there are."""
    child = processes.start(PROBE, ProbeRequest())
    try:
        return child.receive(MACHINE)
    except EOFError:
        raise RuntimeError(f"the first training process could not start: {child.exit_reason()}") from None
    finally:
        child.end()
