"""The child's side of an ingest: read an upload under limits, and send the verdict (`wbar_training.uploads`)."""

import errno
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from wbar.checkpoints import CheckpointFacts, Fault
from wbar.errors import ContentTooLarge, Rejected
from wbar_averaging.safetensors_file import safetensors_pieces
from wbar_training.data.packed import Packed
from wbar_training.messages import Crashed
from wbar_training.uploads import checkpoint_files, dataset_archives, samples
from wbar_training.uploads.packing import pack
from wbar_worker.children import (
    CheckpointFound,
    CheckpointUpload,
    DatasetPacked,
    DatasetUpload,
    UploadRejected,
    Verdict,
    samples_path,
)
from wbar_worker.processes import ControlChannel, confine, first_line
from wbar_worker.written_content import write_content


def validate_checkpoint(upload: CheckpointUpload, channel: ControlChannel) -> None:
    """Validate a checkpoint within the limits, and send the verdict."""
    limits = upload.limits
    confine(limits.memory, limits.seconds, limits.file_bytes)

    def read() -> CheckpointFound:
        checked = checkpoint_files.check(
            upload.path,
            upload.architecture,
            upload.num_classes,
            upload.unpacked,
            limits.content,
            upload.tables,
            upload.any_network,
        )
        if not checked.as_stored:
            write_content(upload.content, safetensors_pieces(checked.tensors, checked.metadata))
        return CheckpointFound(facts=CheckpointFacts(**vars(checked.facts)), as_stored=checked.as_stored)

    channel.send(_verdict(read))


def validate_dataset(upload: DatasetUpload, channel: ControlChannel) -> None:
    """Pack an archive or a folder within the limits, and send the verdict."""
    limits = upload.limits
    confine(limits.memory, limits.seconds, limits.file_bytes)

    def packed() -> DatasetPacked:
        assert isinstance(upload.source, Path)
        return _found(upload, pack(upload.source, upload.out, limits.content, upload.task, upload.void_label))

    channel.send(_verdict(packed))


def pack_builtin(upload: DatasetUpload, channel: ControlChannel) -> None:
    """Pack a built-in dataset within the limits, and send the verdict. Its images may have to be downloaded."""
    limits = upload.limits
    confine(limits.memory, limits.seconds, limits.file_bytes)

    def packed() -> DatasetPacked:
        return _found(upload, dataset_archives.pack_builtin(str(upload.source), upload.out, upload.max_train_images))

    channel.send(_verdict(packed))


def _found(upload: DatasetUpload, packed: Packed) -> DatasetPacked:
    """Return the verdict on a packed dataset; a sheet of samples that cannot be drawn is missing, and no fault of it."""
    facts = {name: value for name, value in asdict(packed).items() if name in DatasetPacked.model_fields}
    seen = DatasetPacked.model_validate(facts)
    try:
        # Images without labels are one row.
        glance = samples.look(upload.out, max(1, len(packed.classes)))
        glance.sheet.save(samples_path(upload.out), optimize=True)
    except Exception:
        logging.getLogger("wbar").exception("no samples of %s", upload.out.name)
        return seen
    return seen.model_copy(update={"class_counts": glance.class_counts if packed.classes else {}, "samples": True})


def _verdict(work: Callable[[], CheckpointFound | DatasetPacked]) -> Verdict:
    try:
        return work()
    except Rejected as error:
        return UploadRejected(fault=Fault(code=error.code, message=error.detail, details=error.details))
    except MemoryError:
        message = "reading it needs more memory than an upload may use"
        return UploadRejected(fault=Fault(code=ContentTooLarge.code, message=message))
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            message = "what it unpacks to is larger than an upload may be"
            return UploadRejected(fault=Fault(code=ContentTooLarge.code, message=message))
        logging.getLogger("wbar").exception("the ingest failed")
        return Crashed(why=first_line(error))
