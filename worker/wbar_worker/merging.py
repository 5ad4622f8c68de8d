"""Merges on a worker of the ingest queue: claim the row, merge in a fresh process, store the result.

There is no state to resume: a merge whose attempt is lost begins again, to the same bits.
"""

import logging
import shutil
import time
from pathlib import Path

from wbar.checkpoints import Fault
from wbar.errors import MergeFailed
from wbar.merges import EXTENSIONS, MergeFormat
from wbar_averaging.model_folder import CARRIED
from wbar_store import logs
from wbar_store.merges import MergeRecord
from wbar_store.store import Store
from wbar_training.messages import Crashed
from wbar_training.uploads.model_folders import BESIDE_BYTES
from wbar_worker import processes
from wbar_worker.children import MERGE_MESSAGES, RUN_MERGE, Merged, MergeEnding, MergeProgress, MergeRefused, MergeWork
from wbar_worker.ingest import RENEW_SECONDS, renewed
from wbar_worker.outages import is_outage, retry_while_unavailable
from wbar_worker.processes import Child, first_line
from wbar_worker.settings import WorkerSettings

log = logging.getLogger("wbar.worker")

WIDER = 4  # times the inputs' bytes that a result may take: float16 written as float64
# The bytes that a result may have beside tensors: a header; of a folder, configurations and a tokenizer.
BESIDE: dict[MergeFormat, int] = {"safetensors": 64 * 1024 * 1024, "huggingface": len(CARRIED) * BESIDE_BYTES}


class Merger:
    """Makes merges for one worker process."""

    def __init__(self, store: Store, settings: WorkerSettings) -> None:
        self.store, self.settings = store, settings

    def run(self, merge_id: str) -> None:
        """Claim and make the merge; a message for one that has ended does nothing."""
        record = self.store.merges.claim(merge_id)
        if record is None:
            return
        with logs.belonging_to(tenant=record.tenant, merge=record.id, attempt=record.attempts):
            scratch = self.settings.scratch / "merges" / f"{record.id}-{record.attempts}"
            failure: Exception | None = None
            try:
                scratch.mkdir(parents=True, exist_ok=True)
                with renewed(record.id, lambda: self.store.merges.renew(record.claim)):
                    self._merge(record, scratch)
            except Exception as error:
                failure = error
            finally:
                shutil.rmtree(scratch, ignore_errors=True)  # before another attempt may begin
            if failure is not None:
                self._failed(record, failure)

    def _merge(self, record: MergeRecord, scratch: Path) -> None:
        inputs = {source.id: source.sha256 for source in record.spec.inputs}
        for name, sha256 in inputs.items():
            self.store.blobs.fetch(sha256, scratch / f"{name}.safetensors")
        for name, sha256 in record.spec.archives.items():
            self.store.blobs.fetch(sha256, scratch / f"{name}.archive")
        largest = max((scratch / f"{name}.safetensors").stat().st_size for name in inputs)
        out = scratch / "out" / f"merged{EXTENSIONS[record.spec.format]}"
        out.parent.mkdir()
        work = MergeWork(
            record.spec, scratch, out, self.settings.memory_per_ingest, self.settings.ingest_seconds,
            WIDER * largest + BESIDE[record.spec.format], self.settings.upload_limits,
        )  # fmt: skip
        ending = self._listen(record, processes.start(RUN_MERGE, work))
        match ending:
            case None:
                return
            case Merged(residuals=residuals):
                received = self.store.blobs.put_file(out)
                with self.store.blobs.keep(received):
                    self.store.merges.succeed(record.claim, received, residuals)
            case MergeRefused():
                self.store.merges.fail(record.claim, ending.fault)
            case Crashed():
                self._give_back(record, ending.why)
                return
        self.store.blobs.collect(record.spec.blobs)  # whoever's they were may have been deleted meanwhile

    def _listen(self, record: MergeRecord, child: Child) -> MergeEnding | None:
        """Return how the child ended; None when the merge was cancelled or another attempt has it."""
        deadline = time.monotonic() + self.settings.ingest_seconds
        try:
            while True:
                if child.pipe.poll(RENEW_SECONDS):
                    # Half a message must not be waited for any longer.
                    with child.ended_after(deadline - time.monotonic()):
                        message = child.receive(MERGE_MESSAGES)
                    if not isinstance(message, MergeProgress):
                        return message
                    fraction: float | None = message.fraction
                else:
                    fraction = None
                if not self.store.merges.renew(record.claim, fraction):
                    return None
                if time.monotonic() > deadline:
                    return self._too_long()
        except (EOFError, OSError):
            return self._too_long() if time.monotonic() > deadline else child.crashed()
        finally:
            child.end()

    def _too_long(self) -> MergeRefused:
        why = f"merging took longer than {self.settings.ingest_seconds:g} s (WBAR_INGEST_SECONDS)"
        return MergeRefused(fault=Fault(code=MergeFailed.code, message=why))

    def _failed(self, record: MergeRecord, error: Exception) -> None:
        """Settle an attempt whose failure is not the merge's: it counts only if it will be the same next time."""
        log.error("%s: attempt %d failed", record.id, record.attempts, exc_info=error)
        if is_outage(error):
            retry_while_unavailable(lambda: self.store.merges.hand_back(record.claim))
        else:
            self._give_back(record, first_line(error))

    def _give_back(self, record: MergeRecord, why: str) -> None:
        """The attempt failed: the next one tries again, and after the last the merge has failed."""
        log.error("%s: attempt %d failed: %s", record.id, record.attempts, why)
        if self.store.merges.give_up(record.id, record.attempts):
            self.store.blobs.collect(record.spec.blobs)
        else:
            self.store.merges.release(record.claim)
            self.store.notify(record.id)
