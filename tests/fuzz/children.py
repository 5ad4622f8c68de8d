"""The child's side: one upload after another through the functions that validate them for the worker, under its limits."""

import hashlib
import json
import shutil
import struct
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, TypeAdapter

from tests.fuzz.inputs import TASKS, Reader
from wbar_training.data.packed import Packed, load_split
from wbar_training.messages import Crashed
from wbar_worker.children import (
    CheckpointFound,
    CheckpointUpload,
    DatasetUpload,
    ReaderLimits,
    UploadRejected,
    samples_path,
)
from wbar_worker.processes import ControlChannel, Entry
from wbar_worker.validate import validate_checkpoint, validate_dataset


@dataclass(frozen=True)
class Batch:
    """Uploads to read: files named by their number in `folder`, each with its reader.

    scratch: is emptied before every upload; temporary files land there, too. canary: see `inputs.Source`.
    """

    folder: Path
    scratch: Path
    canary: Path
    readers: tuple[tuple[int, Reader], ...]
    limits: ReaderLimits


class Outcome(BaseModel):
    """How one upload was met.

    code: of the refusal; None where the upload was accepted. crashed: the reader failed in a way that it did not expect.
    sha256, structure: of what an accepted upload gave: all of it, and its names, shapes and dtypes.
    pictures: of a dataset, the class of each, and a digest of its pixels.
    left: files that a refusal left behind. ran: files in the canary's folder.
    """

    type: Literal["outcome"] = "outcome"
    code: str | None
    message: str
    crashed: bool
    sha256: str
    structure: str
    pictures: list[str]
    left: list[str]
    ran: int


OUTCOME = TypeAdapter(Outcome)


class _Recorder:
    """Takes the verdict in place of the worker's channel."""

    def __init__(self) -> None:
        self.verdict: Any = None

    def send(self, message: BaseModel) -> None:
        self.verdict = message


def read_batch(batch: Batch, channel: ControlChannel) -> None:
    """Read every upload of the batch, and send an outcome for each as it is there."""
    for number, reader in batch.readers:
        for old in list(batch.scratch.iterdir()):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        channel.send(_read(batch.folder / str(number), reader, batch))


def _read(path: Path, reader: Reader, batch: Batch) -> Outcome:
    out, recorder = batch.scratch / "out", _Recorder()
    as_channel = cast(ControlChannel, recorder)
    if reader in ("checkpoint", "program"):
        named = "resnet20" if reader == "checkpoint" else None
        with open(out, "wb", buffering=0) as content:
            as_pipe = cast(Connection, content)
            upload = CheckpointUpload(path, batch.scratch / "unpacked", as_pipe, named, None, batch.limits)
            validate_checkpoint(upload, as_channel)
    else:
        validate_dataset(DatasetUpload(path, out, TASKS[reader], None, batch.limits), as_channel)
    verdict = recorder.verdict
    refused, crashed = isinstance(verdict, UploadRejected), isinstance(verdict, Crashed)
    accepted = not refused and not crashed
    if isinstance(verdict, CheckpointFound) and verdict.as_stored:
        shutil.copyfile(path, out)
    elif not accepted and out.exists() and out.stat().st_size == 0:  # nothing was written before the refusal
        out.unlink()
    return Outcome(
        code=verdict.fault.code if refused else None,
        message=verdict.fault.message if refused else verdict.why if crashed else "",
        crashed=crashed,
        sha256=hashlib.sha256(out.read_bytes()).hexdigest() if accepted else "",
        structure=_structure(out) if accepted else "",
        pictures=_pictures(out) if accepted and reader == "dataset" else [],
        left=[entry.name for entry in batch.scratch.iterdir() if not (accepted and entry in (out, samples_path(out)))],
        ran=len(list(batch.canary.iterdir())),
    )


def _structure(out: Path) -> str:
    data = out.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = json.loads(header.pop("__metadata__", {}).get("wbar.dataset", "{}"))
    kept = {name: [entry["dtype"], entry["shape"]] for name, entry in header.items() if not name.endswith("encoded")}
    facts = {key: metadata.get(key) for key in ("classes", "channels", "height", "width", "images")}
    return hashlib.sha256(json.dumps([kept, facts], sort_keys=True).encode()).hexdigest()


def _pictures(out: Path) -> list[str]:
    packed, found = Packed.read(out), []
    for split in ("train", "val"):
        loaded = load_split(out, split, (packed.height, packed.width), None)
        for image, label in zip(loaded.images, loaded.labels.tolist(), strict=True):
            found.append(f"{packed.classes[label]} {hashlib.sha256(image.numpy().tobytes()).hexdigest()}")
    return found


READ_BATCH: Entry[Batch] = Entry("tests.fuzz.children", "read_batch", isolated=True)
