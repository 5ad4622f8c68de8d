"""The child's side of an ingest: read an upload under limits, and send the verdict (`wbar_training.uploads`)."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from wbar.checkpoints import CheckpointFacts, Fault
from wbar.errors import ContentTooLarge, Rejected
from wbar_training.messages import Crashed
from wbar_training.uploads import checkpoint_files, dataset_archives
from wbar_training.uploads.limits import Limits
from wbar_worker.children import (
    CheckpointFound,
    CheckpointUpload,
    DatasetPacked,
    DatasetUpload,
    UploadRejected,
    Verdict,
)
from wbar_worker.processes import ControlChannel, confine, first_line


def validate_checkpoint(upload: CheckpointUpload, channel: ControlChannel) -> None:
    """Validate a checkpoint within the limits, and send the verdict."""
    confine(upload.limits.memory, upload.limits.seconds)

    def read() -> CheckpointFound:
        valid = checkpoint_files.validate(upload.path, upload.architecture, upload.num_classes, upload.out)
        return CheckpointFound(facts=CheckpointFacts(**vars(valid)))

    channel.send(_verdict(read))


def validate_dataset(upload: DatasetUpload, channel: ControlChannel) -> None:
    """Pack a dataset within the limits, and send the verdict."""
    confine(upload.limits.memory, upload.limits.seconds)
    limits = Limits(bytes=upload.limits.archive_bytes, files=upload.limits.archive_files)

    def pack() -> DatasetPacked:
        if isinstance(upload.source, Path):
            pack_source = dataset_archives.pack_folder if upload.source.is_dir() else dataset_archives.pack_archive
            packed = pack_source(upload.source, upload.out, limits, upload.multilabel)
        else:
            packed = dataset_archives.pack_builtin(upload.source, upload.out, upload.max_train_images)
        return DatasetPacked.model_validate(asdict(packed))

    channel.send(_verdict(pack))


def _verdict(work: Callable[[], CheckpointFound | DatasetPacked]) -> Verdict:
    try:
        return work()
    except Rejected as error:
        return UploadRejected(fault=Fault(code=error.code, message=error.detail, details=error.details))
    except MemoryError:
        message = "reading it needs more memory than an upload may use"
        return UploadRejected(fault=Fault(code=ContentTooLarge.code, message=message))
    except Exception as error:
        logging.getLogger("wbar").exception("the ingest failed")
        return Crashed(why=first_line(error))
