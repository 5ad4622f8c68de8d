"""The sweeper finds jobs and uploads without a worker, and notifies again. Safe to run in several processes."""

import logging
import shutil
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from wbar_store import logs
from wbar_store.claims import Claim
from wbar_store.database import UNAVAILABLE, Tenant
from wbar_store.notifier import INGEST, QUEUES, RUN_JOB
from wbar_store.store import Store
from wbar_worker.settings import WorkerSettings

log = logging.getLogger("wbar.sweep")

HOUSEKEEPING_SECONDS = 600.0
ABANDONED_SECONDS = 24 * 3600.0


class Sweeper:
    """Looks for lost work, and tidies up what ended jobs left behind."""

    def __init__(self, store: Store, settings: WorkerSettings) -> None:
        self.store, self.settings = store, settings
        self._housekept = 0.0
        self._failed = 0  # looks that the database could not be told of yet

    def run(self, stop: threading.Event) -> None:
        """Look again and again until told to stop; a database or broker that is away is tried again."""
        while not stop.is_set():
            try:
                self.look()
            except Exception as error:
                self._failed += 1
                log.error(
                    "the sweeper could not look (%s: %s)", type(error).__name__, (str(error).splitlines() or [""])[0]
                )
            stop.wait(self.settings.sweep_seconds)

    def look(self) -> None:
        """Look once: re-queue expired leases, notify again of waiting rows, and now and then tidy up."""
        for tenant, claim in self.store.attempts.expired():
            self._settle(tenant, claim)
        for study_id in self.store.studies.overdue():
            self._end(study_id)
        again = Counter[str]()
        for job_id in self.store.jobs.overdue(self._is_empty(RUN_JOB)):
            self.store.notify(job_id)
            again[QUEUES[RUN_JOB]] += 1
        is_empty = self._is_empty(INGEST)
        for repository in (self.store.checkpoints, self.store.datasets, self.store.merges):
            for object_id in repository.overdue(is_empty):
                if not repository.give_up(object_id):
                    self.store.notify(object_id)
                    again[QUEUES[INGEST]] += 1
        if time.monotonic() - self._housekept > HOUSEKEEPING_SECONDS:
            self._housekept = time.monotonic()
            self._tidy()
        self._count(again)

    def _end(self, study_id: str) -> None:
        try:
            self.store.studies.settle(study_id)
        except UNAVAILABLE:
            raise
        except Exception:  # one study's row must not keep the sweeper from all others
            log.exception("the end of %s could not be noted", study_id)

    def _settle(self, tenant: Tenant, claim: Claim) -> None:
        with logs.belonging_to(tenant=tenant.name, job=claim.id, attempt=claim.attempt):
            try:
                moved = self.store.attempts.expire(claim, "its worker fell silent (killed, or cut off)")
            except UNAVAILABLE:
                raise
            except Exception:
                log.exception("%s: its lost attempt could not be settled", claim.id)  # the others must not wait for it
            else:
                log.warning("%s: attempt %d lost its lease, now %s", claim.id, claim.attempt, moved)

    def _count(self, again: Counter[str]) -> None:
        """Count this look, and those that failed before it while the database was away."""
        with self.store.database.write(durable=False):
            self.store.counters.add("sweeps", "done")
            if self._failed:
                self.store.counters.add("sweeps", "failed", self._failed)
            for queue, times in again.items():
                self.store.counters.add("notified_again", queue, times)
        self._failed = 0

    def _is_empty(self, task: str) -> bool:
        return self.store.notifier.waiting(QUEUES[task]) == 0

    def _tidy(self) -> None:
        for job_id in self.store.jobs.ended_with_state():
            self.store.jobs.drop_state(job_id)
        self.store.expire()
        self.store.tidy_uploads()
        self.store.blobs.collect()
        self.store.blobs.sweep_temporaries()
        self.store.idempotency.sweep()
        self.store.deliveries.sweep()
        self._tidy_scratch(self.settings.scratch / "jobs")
        for path in (self.settings.scratch / "studies").glob("study_*"):
            if self.store.studies.has_ended(path.name):
                shutil.rmtree(path, ignore_errors=True)
        for path in (
            found for kind in ("ingest", "merges", "predict") for found in (self.settings.scratch / kind).glob("*")
        ):
            with suppress(FileNotFoundError):  # one that its worker deletes just now
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)  # of a worker that was killed

    def _tidy_scratch(self, folder: Path) -> None:
        """Delete working files of jobs that have ended, for instance cancelled while their worker was away."""
        for path in folder.glob("job_*"):
            if self.store.jobs.has_ended(path.name):
                shutil.rmtree(path, ignore_errors=True)
