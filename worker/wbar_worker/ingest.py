"""Uploads are validated: a child process under limits reads the file; its verdict becomes the row, and rejected bytes go."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from wbar.checkpoints import Fault
from wbar.datasets import ImageShape, Split
from wbar.errors import ContentTooLarge, SourceUnavailable
from wbar.transfers import sha256_of
from wbar_store import logs
from wbar_store.checkpoints import CheckpointRecord
from wbar_store.claims import Claim
from wbar_store.datasets import DatasetRecord, DatasetSummary
from wbar_store.ids import kind_of
from wbar_store.sources import locate, take_file
from wbar_store.store import Store
from wbar_store.validated_uploads import AnyUpload, UploadRecord, UploadRepository
from wbar_training.messages import Crashed
from wbar_worker import processes
from wbar_worker.child_content import ChildContent
from wbar_worker.children import (
    PACK_BUILTIN,
    VALIDATE_CHECKPOINT,
    VALIDATE_DATASET,
    VERDICTS,
    CheckpointFound,
    CheckpointUpload,
    DatasetPacked,
    DatasetUpload,
    ReaderLimits,
    UploadRejected,
    Verdict,
    samples_path,
)
from wbar_worker.installed import InstalledTimm
from wbar_worker.outages import is_outage, retry_while_unavailable
from wbar_worker.processes import Child, first_line
from wbar_worker.settings import WorkerSettings

log = logging.getLogger("wbar.worker")

RENEW_SECONDS = 2.0
Accepted = TypeVar("Accepted", CheckpointFound, DatasetPacked)


class Ingester:
    """Validates uploads for one worker process. timm: where it is installed, is told what the uploads are."""

    def __init__(self, store: Store, settings: WorkerSettings, timm: InstalledTimm | None = None) -> None:
        self.store, self.settings, self.timm = store, settings, timm
        self.limits = ReaderLimits(
            memory=settings.memory_per_ingest,
            seconds=settings.ingest_seconds,
            content=settings.upload_limits,
        )

    def run(self, object_id: str) -> None:
        """Claim and validate the object; a message for one that is validated already does nothing."""
        if kind_of(object_id) == "ckpt":
            self._claim_and_validate(self.store.checkpoints, object_id, self._validate_checkpoint)
        else:
            self._claim_and_validate(self.store.datasets, object_id, self._validate_dataset)

    def _claim_and_validate(
        self, repository: UploadRepository[AnyUpload], object_id: str, validate: Callable[[AnyUpload, Path], None]
    ) -> None:
        record = repository.claim(object_id)
        if record is None:
            return
        with logs.belonging_to(tenant=record.tenant, upload=record.id, attempt=record.attempts):
            self._validate(repository, record, validate)

    def _validate(
        self, repository: UploadRepository[AnyUpload], record: AnyUpload, validate: Callable[[AnyUpload, Path], None]
    ) -> None:
        scratch = self.settings.scratch / "ingest" / f"{record.id}-{record.attempts}"
        failure: Exception | None = None
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            with renewed(record.id, lambda: repository.renew(record.claim)):
                validate(record, scratch)
        except Exception as error:
            failure = error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # before another attempt may begin
        if failure is not None:
            self._failed(repository, record, failure)

    def _failed(self, repository: UploadRepository[AnyUpload], record: AnyUpload, error: Exception) -> None:
        """Settle an attempt whose failure is not the upload's: it counts only if it will be the same next time."""
        log.error("%s: attempt %d failed", record.id, record.attempts, exc_info=error)
        if is_outage(error):
            retry_while_unavailable(lambda: repository.hand_back(record.claim))
        else:
            self._give_back(repository, record, first_line(error))

    def _validate_checkpoint(self, record: CheckpointRecord, scratch: Path) -> None:
        repository = self.store.checkpoints
        path = scratch / "upload"
        assert record.content is not None
        self.store.blobs.fetch(record.content, path)
        given = record.given
        any_network, tables = given.purpose == "merge", self.settings.tables
        with ChildContent(self.store.blobs, self.limits.file_bytes) as content:
            upload = CheckpointUpload(
                path, scratch / "unpacked", content.child_end, given.architecture, given.num_classes, self.limits,
                tables, any_network,
            )  # fmt: skip
            child = processes.start(VALIDATE_CHECKPOINT, upload)
            verdict = self._verdict(repository, record.claim, child, content)
            if self.timm is not None:
                self.timm.heard(verdict)
            accepted = self._accepted(repository, record, verdict, CheckpointFound)
            if accepted is None:
                return
            if accepted.as_stored:  # its own row keeps it
                repository.accept(record.claim, accepted.facts, record.content)
                return
            try:
                received = content.finish()
            except ContentTooLarge as error:
                self._reject(repository, record, Fault(code=error.code, message=error.detail))
                return
            with self.store.blobs.keep(received) as sha256:
                repository.accept(record.claim, accepted.facts, sha256)

    def _validate_dataset(self, record: DatasetRecord, scratch: Path) -> None:
        repository = self.store.datasets
        out = scratch / "packed.safetensors"
        try:
            source = self._source(record, scratch / "upload")
        except (SourceUnavailable, ContentTooLarge) as error:
            self._reject(repository, record, Fault(code=error.code, message=error.detail))
            return
        options = record.options
        upload = DatasetUpload(source, out, record.task, options.max_train_images, self.limits, options.void_label)
        child = processes.start(PACK_BUILTIN if isinstance(source, str) else VALIDATE_DATASET, upload)
        accepted = self._accepted(repository, record, self._verdict(repository, record.claim, child), DatasetPacked)
        if accepted is None:
            return
        received = self.store.blobs.put_file(out)
        # Of the archive where there is one, so that it can be compared; of the packed images for folders and built-in sets.
        archive = source if isinstance(source, Path) and source.is_file() else None
        size = record.bytes if record.bytes is not None else archive.stat().st_size if archive else received.bytes
        sha256 = record.sha256 or (sha256_of(archive) if archive else received.sha256)
        with ExitStack() as held:
            packed = held.enter_context(self.store.blobs.keep(received))
            sheet = self.store.blobs.put_file(samples_path(out)) if accepted.samples else None
            shown = held.enter_context(self.store.blobs.keep(sheet)) if sheet else None
            repository.accept(record.claim, packed, size, sha256, _summary(accepted), shown)
        self._collect(record)

    def _source(self, record: DatasetRecord, target: Path) -> Path | str:
        """Return what the child packs: an archive or folder, or a built-in set's name.

        Raises SourceUnavailable, and ContentTooLarge for an archive in an object store.
        """
        if record.content is not None:
            self.store.blobs.fetch(record.content, target)
            return target
        assert record.source is not None
        if record.source.startswith("builtin:"):
            return record.source.removeprefix("builtin:")
        location = locate(record.source, self.settings.sources)
        if location is None:
            raise SourceUnavailable(
                f"{record.source} is not below a root that this worker's operator allows (WBAR_SOURCES)"
            )
        if location.scheme == "file":
            return take_file(location, target)
        try:
            return fetch_object(location.url, target, self.limits.content.bytes)
        except (OSError, BaseError) as error:
            raise SourceUnavailable(
                f"{record.source} cannot be read ({type(error).__name__}): is it there, and may the worker read it?"
            ) from error

    def _verdict(
        self, repository: UploadRepository[AnyUpload], claim: Claim, child: Child, content: ChildContent | None = None
    ) -> Verdict | None:
        """Return the child's answer; None when the object was deleted or validated by another attempt meanwhile.

        content: what the child writes before it answers; storing it takes none of the child's time.
        """
        began = renewed_at = time.monotonic()
        deadline = began + self.settings.ingest_seconds
        try:
            while True:
                ready = wait([child.pipe] if content is None else [child.pipe, content.fileno()], RENEW_SECONDS)
                now = time.monotonic()
                if content is not None and content.fileno() in ready:
                    content.take()
                    deadline += time.monotonic() - now
                elif ready:
                    with child.ended_after(deadline - now):  # half an answer must not be waited for any longer
                        return _received(child)
                if now - renewed_at >= RENEW_SECONDS:
                    if not repository.renew(claim):
                        return None
                    renewed_at = now
                if now > deadline:
                    message = f"reading it took longer than {self.settings.ingest_seconds:g} s"
                    return UploadRejected(fault=Fault(code=ContentTooLarge.code, message=message))
        except ContentTooLarge as error:
            return UploadRejected(fault=Fault(code=error.code, message=error.detail))
        finally:
            child.end()

    def _accepted(
        self,
        repository: UploadRepository[AnyUpload],
        record: AnyUpload,
        verdict: Verdict | None,
        wanted: type[Accepted],
    ) -> Accepted | None:
        """Return the verdict if it accepts the upload; carry any other verdict out, and return None."""
        match verdict:
            case None:
                return None
            case UploadRejected():
                self._reject(repository, record, verdict.fault)
            case Crashed():
                self._give_back(repository, record, verdict.why)
            case _ if isinstance(verdict, wanted):
                return verdict
            case _:
                self._give_back(repository, record, f"its process spoke of a {verdict.type}")
        return None

    def _give_back(self, repository: UploadRepository[AnyUpload], record: AnyUpload, why: str) -> None:
        """The attempt failed: the next one tries again, and after the last the upload is rejected."""
        log.error("validating %s (attempt %d) failed: %s", record.id, record.attempts, why)
        if repository.give_up(record.id, record.attempts):
            self._collect(record)
        else:
            repository.release(record.claim)
            self.store.notify(record.id)

    def _reject(self, repository: UploadRepository[AnyUpload], record: AnyUpload, fault: Fault) -> None:
        repository.reject(record.claim, fault)
        self._collect(record)

    def _collect(self, record: UploadRecord) -> None:
        if record.content is not None:
            self.store.blobs.collect([record.content])


@contextmanager
def renewed(object_id: str, renew: Callable[[], object]) -> Iterator[None]:
    """Keep the lease while files are fetched, worked on and stored, however long each takes."""
    done, belongs = threading.Event(), logs.current()

    def keep() -> None:
        while not done.wait(RENEW_SECONDS):
            try:
                renew()
            except Exception as error:
                with logs.belonging_to(**belongs):
                    log.error("no renewal for %s (%s)", object_id, type(error).__name__)

    thread = threading.Thread(target=keep, name=f"renew-{object_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _received(child: Child) -> Verdict:
    try:
        return child.receive(VERDICTS)
    except (EOFError, OSError):
        return child.crashed()
    except ValueError as error:
        return Crashed(why=f"its process answered with something else than a verdict ({type(error).__name__})")


def _summary(packed: DatasetPacked) -> DatasetSummary:
    return DatasetSummary(
        classes=packed.classes,
        splits={split: Split(images=count) for split, count in packed.images.items()},
        image=ImageShape(channels=packed.channels, height=packed.height, width=packed.width),
        class_counts=packed.class_counts or None,
        many_sizes=packed.many_sizes,
        mean=packed.mean,
        std=packed.std,
        held_out=packed.held_out,
        warnings=packed.warnings,
        masks=packed.masks,
    )


def fetch_object(url: str, target: Path, most: int) -> Path:
    """Copy an archive from an object store. Raises ContentTooLarge above `most` bytes, before any is copied; BaseError."""
    parent, _, name = url.rpartition("/")
    found = obstore.get(from_url(parent), name)
    if found.meta["size"] > most:
        raise ContentTooLarge(
            f"{url} has {found.meta['size']:,} bytes, more than the {most:,} that an archive may unpack to "
            "(WBAR_ARCHIVE_BYTES)"
        )
    with open(target, "wb") as file:
        for chunk in found.stream():
            file.write(chunk)
    return target
