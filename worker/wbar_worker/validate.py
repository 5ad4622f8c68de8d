"""The child's side of an ingest: read what a stranger uploaded, under limits, and say what it is (`wbar_training.uploads`)."""

import logging
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from wbar.errors import Rejected
from wbar_training.uploads import checkpoint_files, dataset_archives
from wbar_worker.processes import Ears, confine


def checkpoint(payload: dict[str, Any], pipe: Connection, _ears: Ears) -> None:
    """payload: path, out, architecture, num_classes, memory, seconds."""
    confine(payload["memory"], payload["seconds"])

    def read() -> dict[str, Any]:
        path, out = Path(payload["path"]), Path(payload["out"])
        return asdict(checkpoint_files.validate(path, payload["architecture"], payload["num_classes"], out))

    _answer(pipe, read)


def dataset(payload: dict[str, Any], pipe: Connection, _ears: Ears) -> None:
    """payload: path or builtin or folder, multilabel, out, max_train_images, limits, memory, seconds."""
    confine(payload["memory"], payload["seconds"])
    limits = dataset_archives.Limits(bytes=payload["archive_bytes"], files=payload["archive_files"])
    out = Path(payload["out"])

    def pack() -> dict[str, Any]:
        if payload["builtin"] is not None:
            return asdict(dataset_archives.pack_builtin(payload["builtin"], out, payload["max_train_images"]))
        path = Path(payload["path"])
        packed = dataset_archives.pack_folder if path.is_dir() else dataset_archives.pack_archive
        return asdict(packed(path, out, limits, payload["multilabel"]))

    _answer(pipe, pack)


def _answer(pipe: Connection, work: Any) -> None:
    try:
        pipe.send(("ready", work()))
    except Rejected as error:
        pipe.send(("rejected", {"code": error.code, "message": error.detail, "details": error.details}))
    except MemoryError:
        pipe.send(("rejected", {"code": "too_large", "message": "reading it needs more memory than an upload may use"}))
    except Exception as error:
        logging.getLogger("wbar").exception("the ingest failed")
        pipe.send(("crashed", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"))
