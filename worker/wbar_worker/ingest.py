"""Uploads are validated: a child process under limits reads the file; its verdict becomes the row, rejected bytes go."""

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url
from sqlalchemy import Row

from wbar_store.store import Store
from wbar_worker import processes
from wbar_worker.settings import WorkerSettings

log = logging.getLogger("wbar.worker")

RENEW_SECONDS = 2.0
Verdict = tuple[str, Any]


class Ingester:
    """Validates uploads for one worker process."""

    def __init__(self, store: Store, settings: WorkerSettings) -> None:
        self.store, self.settings = store, settings

    def run(self, object_id: str) -> None:
        """Claim and validate the object; a message for one that is validated already does nothing."""
        row = self.store.uploads.claim(object_id)
        if row is None:
            return
        scratch = self.settings.scratch / "ingest" / f"{object_id}-{row.attempts}"
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            with self._renewed(row):
                if object_id.startswith("ckpt_"):
                    self._checkpoint(row, scratch)
                else:
                    self._dataset(row, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @contextmanager
    def _renewed(self, row: Row[Any]) -> Iterator[None]:
        """Keep the lease while files are fetched, validated and stored, however long each takes."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(RENEW_SECONDS):
                try:
                    self.store.uploads.renew(row.id, row.attempts)
                except Exception as error:
                    log.error("no renewal for %s (%s)", row.id, type(error).__name__)

        thread = threading.Thread(target=renew, name=f"renew-{row.id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _checkpoint(self, row: Row[Any], scratch: Path) -> None:
        path, out = scratch / "upload", scratch / "weights.safetensors"
        self.store.blobs.fetch(row.content, path)
        payload = {"path": str(path), "out": str(out), **row.given}
        kind, answer = self._in_child("validate.checkpoint", payload, row)
        if kind != "ready":
            self._reject(row, kind, answer)
            return
        network = answer["network"]
        received = self.store.blobs.put_file(out)
        values = {
            "status": "ready",
            "format": answer["format"],
            "parameters": answer["parameters"],
            "tensors": answer["tensors"],
            "prefix": answer["prefix"],
            "projection": network["projection"],
            "weights": received.sha256,
            "architecture": {
                "name": network["name"],
                "num_classes": network["num_classes"],
                "channels": network["channels"],
                "image_size": network["image_size"],
                "source": answer["source"],
                "ambiguous_with": answer["ambiguous_with"],
            },
        }
        with self.store.blobs.keep(received), self.store.database.write() as connection:
            self.store.uploads.settle(connection, row.id, row.attempts, values)

    def _dataset(self, row: Row[Any], scratch: Path) -> None:
        out = scratch / "packed.safetensors"
        payload: dict[str, Any] = {
            "path": None,
            "builtin": None,
            "multilabel": row.task == "multilabel",
            "out": str(out),
            "max_train_images": row.options.get("max_train_images"),
            "archive_bytes": self.settings.archive_bytes,
            "archive_files": self.settings.archive_files,
        }
        if row.content is not None:
            path = scratch / "upload"
            self.store.blobs.fetch(row.content, path)
            payload["path"] = str(path)
        elif row.source.startswith("builtin:"):
            payload["builtin"] = row.source.removeprefix("builtin:")
        else:
            try:
                payload["path"] = str(_fetch_source(row.source, scratch / "upload"))
            except (OSError, BaseError) as error:
                message = (
                    f"{row.source} cannot be read ({type(error).__name__}): is it there, and may the worker read it?"
                )
                self._reject(row, "rejected", {"code": "source_unavailable", "message": message, "details": None})
                return
        kind, found = self._in_child("validate.dataset", payload, row)
        if kind != "ready":
            self._reject(row, kind, found)
            return
        received = self.store.blobs.put_file(out)
        values = {
            "status": "ready",
            "packed": received.sha256,
            "content": None,
            "bytes": row.bytes if row.bytes is not None else _size(payload["path"], received.bytes),
            "sha256": row.sha256 or _digest(payload["path"], received.sha256),
            "summary": {
                "classes": found["classes"],
                "splits": {split: {"images": count} for split, count in found["images"].items()},
                "image": {name: found[name] for name in ("channels", "height", "width")},
                "mean": found["mean"],
                "std": found["std"],
                "held_out": found["held_out"],
                "warnings": found["warnings"],
            },
        }
        with self.store.blobs.keep(received), self.store.database.write() as connection:
            self.store.uploads.settle(connection, row.id, row.attempts, values)
        self._collect(row)

    def _in_child(self, entry: str, payload: dict[str, Any], row: Row[Any]) -> Verdict:
        """The child's answer; while it works the row is renewed, so that the sweeper knows it is not forgotten."""
        limits = {"memory": self.settings.ingest_memory, "seconds": self.settings.ingest_seconds}
        child = processes.start(entry, payload | limits)
        deadline = time.monotonic() + self.settings.ingest_seconds
        try:
            while not child.pipe.poll(RENEW_SECONDS):
                if not self.store.uploads.renew(row.id, row.attempts):
                    return "gone", None
                if time.monotonic() > deadline:
                    message = f"reading it took longer than {self.settings.ingest_seconds:g} s"
                    return "rejected", {"code": "too_large", "message": message}
            answer: Verdict = child.pipe.recv()
            return answer
        except (EOFError, OSError):
            return "crashed", child.obituary()
        finally:
            child.end()

    def _reject(self, row: Row[Any], kind: str, answer: Any) -> None:
        if kind == "gone":
            return
        if kind == "crashed":
            log.error("validating %s (attempt %d) failed: %s", row.id, row.attempts, answer)
            if self.store.uploads.give_up(row.id, row.attempts):
                self._collect(row)
            else:
                self.store.uploads.release(row.id, row.attempts)
                self.store.uploads.notify(row.id)
            return
        values = {"status": "rejected", "error": answer, "content": None}
        with self.store.database.write() as connection:
            self.store.uploads.settle(connection, row.id, row.attempts, values)
        self._collect(row)

    def _collect(self, row: Row[Any]) -> None:
        if row.content is not None:
            self.store.blobs.collect([row.content])


def _fetch_source(source: str, target: Path) -> Path:
    """A folder is read where it is; an archive of an allowed file or S3 location is copied here first."""
    parsed = urlparse(source)
    if parsed.scheme == "file":
        local = Path(unquote(parsed.path))
        if not local.exists():
            raise FileNotFoundError(local)
        return local
    parent, _, name = source.rpartition("/")
    with open(target, "wb") as file:
        for chunk in obstore.get(from_url(parent), name).stream():
            file.write(chunk)
    return target


def _size(path: str | None, otherwise: int) -> int:
    return Path(path).stat().st_size if path is not None and Path(path).is_file() else otherwise


def _digest(path: str | None, otherwise: str) -> str:
    """Of the archive where there is one, so that it can be compared; of the packed images for folders and builtins."""
    if path is None or not Path(path).is_file():
        return otherwise
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
