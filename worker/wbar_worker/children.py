"""The requests of a worker to its children, and their answers: frozen values both ways. Torch-free.

The messages of an attempt are those of `wbar_training.messages`; here are the requests, and the answers of the other
children.
"""

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from wbar.catalog import Architecture
from wbar.checkpoints import CheckpointFacts, Fault
from wbar.datasets import VOID_LABEL, Task
from wbar.merges import MergeSpec
from wbar.spec import JobSpec
from wbar_training.messages import Crashed
from wbar_training.uploads import limits as uploads
from wbar_training.workspace import Workspace
from wbar_worker import processes
from wbar_worker.processes import Entry


@dataclass(frozen=True)
class AttemptRequest:
    """The request to run one attempt. gpus: the only devices that its process may see, by index among the worker's."""

    spec: JobSpec
    workspace: Workspace
    gpus: tuple[int, ...]


@dataclass(frozen=True)
class ProbeRequest:
    """The request to describe this machine. A child answers it, since the worker does not import torch."""


@dataclass(frozen=True)
class ReaderLimits:
    """The limits of a child that reads an upload.

    memory: bytes of heap.
    seconds: of wall time, and of processor time per core.
    content: what the readers count.
    """

    memory: int
    seconds: float
    content: uploads.UploadLimits

    @property
    def file_bytes(self) -> int:
        """The largest file that the child may write: what it packs fits its memory, or is the archive's images as they came."""
        return max(self.memory, self.content.bytes) + self.content.header_bytes


@dataclass(frozen=True)
class CheckpointUpload:
    """The request to read the file at `path`, and to write its tensors, as they are stored, to `content`.

    unpacked: a name for what an archive unpacks to.
    content: a pipe's end, see `wbar_worker.child_content`.
    architecture, num_classes: as the upload named them.
    tables: the folder of the table of timm's networks; None: they are not recognized.
    any_network: take tensors of no known network, too.
    """

    path: Path
    unpacked: Path
    content: Connection
    architecture: str | None
    num_classes: int | None
    limits: ReaderLimits
    tables: Path | None = None
    any_network: bool = False


@dataclass(frozen=True)
class DatasetUpload:
    """The request to pack the archive or folder at `source`, or the built-in set of that name, to `out`.

    void_label: of segmentation, the value of pixels that belong to no class.

    Built-in sets are packed by PACK_BUILTIN, which may download them.
    """

    source: Path | str
    out: Path
    task: Task
    max_train_images: int | None
    limits: ReaderLimits
    void_label: int = VOID_LABEL


@dataclass(frozen=True)
class MergeWork:
    """The request to merge the files ID.safetensors in `folder`, one for each input of the spec, to `out`.

    Beside them lie ID.archive, of the inputs that the spec has archives of.
    memory, seconds, file_bytes: the limits of the child.
    limits: of an archive.
    """

    spec: MergeSpec
    folder: Path
    out: Path
    memory: int
    seconds: float
    file_bytes: int
    limits: uploads.UploadLimits


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Message):
    """The answer to a ProbeRequest.

    gpus: how many torch sees.
    torch: its version.
    """

    type: Literal["machine"] = "machine"
    gpus: int
    torch: str


@dataclass(frozen=True)
class TimmRequest:
    """The request to name timm's networks, or to make their table in a folder where it is missing."""

    tables: Path
    make_table: bool


@dataclass(frozen=True)
class LibraryRequest:
    """The request to name the networks of an installed library."""

    library: Literal["transformers", "smp"]


class LibraryNames(_Message):
    """The installed version of a library, and its networks' entries of the catalog."""

    type: Literal["names"] = "names"
    version: str
    entries: list[Architecture]


class TimmTable(_Message):
    """The other answer to a TimmRequest: timm's table is there."""

    type: Literal["table"] = "table"
    path: str


class CheckpointFound(_Message):
    """A checkpoint that can be fine-tuned. as_stored: the upload is its own stored form; else that was written."""

    type: Literal["checkpoint"] = "checkpoint"
    facts: CheckpointFacts
    as_stored: bool


class DatasetPacked(_Message):
    """A dataset whose every image was decoded; packed at `out`. images, class_counts: their number, by split.

    samples: whether the sheet of samples lies at `samples_path(out)`.
    """

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
    masks: bool = False
    class_counts: dict[str, list[int]] = {}
    samples: bool = False


def samples_path(out: Path) -> Path:
    """Return where the child puts the sheet of samples of the dataset that it packs at `out`."""
    return out.with_name("samples.png")


class UploadRejected(_Message):
    """An upload that cannot be used; another attempt would end the same."""

    type: Literal["rejected"] = "rejected"
    fault: Fault


class MergeProgress(_Message):
    """How much of the reading is done, from 0 to 1."""

    type: Literal["progress"] = "progress"
    fraction: float


class Merged(_Message):
    """The merge lies where it was asked for. residuals: of LoRA adapters, by module, the largest."""

    type: Literal["merged"] = "merged"
    residuals: dict[str, float] | None = None


class MergeRefused(_Message):
    """The inputs cannot be merged; another attempt would end the same."""

    type: Literal["refused"] = "refused"
    fault: Fault


MergeEnding = Merged | MergeRefused | Crashed
MERGE_MESSAGES: TypeAdapter[MergeProgress | MergeEnding] = TypeAdapter(
    Annotated[MergeProgress | MergeEnding, Field(discriminator="type")]
)

Verdict = CheckpointFound | DatasetPacked | UploadRejected | Crashed
VERDICTS: TypeAdapter[Verdict] = TypeAdapter(Annotated[Verdict, Field(discriminator="type")])
MACHINE = TypeAdapter(Machine)
TIMM: TypeAdapter[LibraryNames | TimmTable] = TypeAdapter(
    Annotated[LibraryNames | TimmTable, Field(discriminator="type")]
)

RUN_ATTEMPT: Entry[AttemptRequest] = Entry("wbar_worker.attempt", "run_attempt")
PROBE: Entry[ProbeRequest] = Entry("wbar_worker.attempt", "probe")
VALIDATE_CHECKPOINT: Entry[CheckpointUpload] = Entry("wbar_worker.validate", "validate_checkpoint", isolated=True)
VALIDATE_DATASET: Entry[DatasetUpload] = Entry("wbar_worker.validate", "validate_dataset", isolated=True)
RUN_MERGE: Entry[MergeWork] = Entry("wbar_worker.merge_child", "run_merge", isolated=True)
LIBRARY = TypeAdapter(LibraryNames)
DESCRIBE_TIMM: Entry[TimmRequest] = Entry("wbar_worker.installed", "describe_timm")
DESCRIBE_LIBRARY: Entry[LibraryRequest] = Entry("wbar_worker.installed", "describe_library")
PACK_BUILTIN: Entry[DatasetUpload] = Entry("wbar_worker.validate", "pack_builtin")


def warm_up() -> Machine:
    """Start the forkserver (seconds: it imports torch); return what devices there are.

    Raises RuntimeError if it fails.
    """
    child = processes.start(PROBE, ProbeRequest())
    try:
        return child.receive(MACHINE)
    except EOFError:
        raise RuntimeError(f"the first training process could not start: {child.crashed().why}") from None
    finally:
        child.end()
