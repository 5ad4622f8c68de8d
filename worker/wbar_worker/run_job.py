"""One job on one slot: claim the row, run an attempt in a fresh process, store its messages, and settle how it ended."""

import logging
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from wbar.checkpoints import Fault
from wbar.errors import OutOfMemory, ReplicaFailed
from wbar_store import logs
from wbar_store.database import UNAVAILABLE
from wbar_store.job_records import JobRecord
from wbar_store.store import Store
from wbar_store.tracing import Tracing, of_row
from wbar_training.messages import AtMeeting, Crashed, Ending, Failed, FromAttempt, ProgressMade, Stopped, Succeeded
from wbar_training.reporter import deliver
from wbar_training.workspace import Workspace
from wbar_worker import processes
from wbar_worker.children import RUN_ATTEMPT, AttemptRequest
from wbar_worker.disk_space import has_room, wait_for_room
from wbar_worker.heartbeat import Heartbeat
from wbar_worker.inputs import fetch_inputs
from wbar_worker.outages import retry_while_unavailable
from wbar_worker.phases import PhaseSpans
from wbar_worker.processes import Child, first_line
from wbar_worker.publish import Publisher
from wbar_worker.settings import WorkerSettings

log = logging.getLogger("wbar.worker")


class Runner:
    """Runs jobs for one worker process."""

    def __init__(
        self,
        store: Store,
        settings: WorkerSettings,
        draining: threading.Event,
        worker: str | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.store, self.settings, self.draining, self.worker = store, settings, draining, worker
        self.tracing = tracing or Tracing("train", None)

    def choose(self, job_id: str, without: Collection[str] = ()) -> str | None:
        """Return the job to run for a message that names `job_id`; None where nothing waits. without: those passed over."""
        return self.store.queue.first_beside(job_id, without)

    def devices(self, job_id: str) -> int:
        """Return how many devices the job asks for."""
        spec = self.store.jobs.spec(job_id)
        return 1 if spec is None else spec.recipe.devices

    def run(self, job_id: str, gpus: Sequence[int], threads: int) -> bool:
        """Claim and run the job; returns when this attempt is settled. False if another worker was first.

        gpus: the devices of the attempt, by index among the worker's; empty: the CPU.
        threads: CPU threads of the attempt.
        """
        if self.draining.is_set():
            return True  # the row stays queued; the sweeper notifies again
        job = self.store.attempts.claim(job_id, self.settings.lease_seconds, self.worker)
        if job is None:
            return False
        with logs.belonging_to(tenant=job.tenant, job=job.id, attempt=job.attempts), self._traced(job):
            heartbeat = Heartbeat(self.store, self.settings, job.claim, self.draining)
            heartbeat.start()
            try:
                self._attempt(job, heartbeat, gpus, threads)
            finally:
                heartbeat.stop()
        return True

    def pass_on(self, job_id: str) -> None:
        """Notify workers of the jobs that were held until this one ended, or came to a meeting.

        They are the next of its study, what joins its replicas, and the replicas that meet it. Where it was its study's last
        one, the study has ended. Where that fails, the sweeper finds them.
        """
        queue = self.store.queue
        with suppress(DBAPIError, *UNAVAILABLE):
            if (study := self.store.studies.of_job(job_id)) is not None and self.store.studies.settle(study):
                shutil.rmtree(self._shared(study), ignore_errors=True)
            for waiting in (
                queue.next_of_study(job_id),
                queue.next_of_replicas(job_id),
                *queue.next_at_meeting(job_id),
            ):
                if waiting is not None:
                    self.store.notify(waiting)

    def find_nothing(self, job_id: str) -> None:
        """Note that the message that names `job_id` found no job that may run."""
        with suppress(DBAPIError, *UNAVAILABLE):
            self.store.queue.give_up_place(job_id)

    def _shared(self, study: str) -> Path:
        return self.settings.scratch / "studies" / study

    @contextmanager
    def _traced(self, job: JobRecord) -> Iterator[None]:
        """Trace the attempt, as a part of the trace of the request that created the job."""
        parent, names = of_row(job.traceparent), {"wbar.tenant": job.tenant, "wbar.job": job.id}
        if job.attempts == 1 and job.started_at is not None:
            self.tracing.record("queued", job.created_at, job.started_at, names, parent)
        with self.tracing.span("attempt", {**names, "wbar.attempt": job.attempts}, parent):
            yield

    def _attempt(self, job: JobRecord, heartbeat: Heartbeat, gpus: Sequence[int], threads: int) -> None:
        workspace = Workspace(
            scratch=self.settings.scratch / "jobs" / job.id,
            device="cuda" if gpus else "cpu",
            threads=threads,
            save_every_seconds=self.settings.save_every_seconds,
            loaders=self.settings.loaders,
            shared=self._shared(study) if (study := self.store.studies.of_job(job.id)) is not None else None,
        )
        publisher = Publisher(self.store, job, heartbeat, self.settings.signing_key)
        try:
            with self.tracing.span("fetch inputs"):
                workspace = retry_while_unavailable(partial(fetch_inputs, self.store, job, workspace))
            ending = self._train(AttemptRequest(job.spec, workspace, tuple(gpus)), heartbeat, publisher)
            # The heartbeat goes on while the results are stored, which may take longer than a lease.
            with self.tracing.span("publish", {"wbar.ending": ending.type}) as span:
                if isinstance(ending, Failed | Crashed):
                    span.failed(ending.message if isinstance(ending, Failed) else ending.why)
                is_over = retry_while_unavailable(lambda: self._settle(job, ending, heartbeat, publisher))
        except ReplicaFailed as error:
            failed = Failed(code=error.code, message=error.detail)
            is_over = retry_while_unavailable(lambda: self._settle(job, failed, heartbeat, publisher))
        except Exception as error:
            # The worker's part failed: a file that is missing, a message that does not validate, a write that is refused.
            log.exception("%s: attempt %d failed", job.id, job.attempts)
            lost = Crashed(why=first_line(error))
            is_over = retry_while_unavailable(lambda: self._settle_ended(job, lost, heartbeat, publisher))
        if is_over:
            shutil.rmtree(workspace.scratch, ignore_errors=True)

    def _train(self, request: AttemptRequest, heartbeat: Heartbeat, publisher: Publisher) -> Ending:
        """Run the attempt in a fresh process, which has ended when this returns."""
        phases, child = PhaseSpans(self.tracing), processes.start(RUN_ATTEMPT, request)
        try:
            heartbeat.watch(child)
            return _listen(child, heartbeat, publisher, phases)
        finally:
            phases.end()
            heartbeat.unwatch()
            child.end()

    def _settle(self, job: JobRecord, ending: Ending, heartbeat: Heartbeat, publisher: Publisher) -> bool:
        """Write how the attempt ended; returns whether its scratch folder can be deleted.

        It cannot where the fence was stale: a successor may use the folder.
        """
        match ending:
            case Succeeded():
                publisher.succeed(ending)
                return self.store.jobs.has_ended(job.id)
            case Failed(code=OutOfMemory.code) if self._try_smaller(job, ending.message):
                return False
            case Failed():
                self.store.attempts.fail(job.claim, Fault(code=ending.code, message=ending.message))
                publisher.forget_state()
                return self.store.jobs.has_ended(job.id)
            case Stopped(reason="pause"):
                self.store.attempts.yield_back(job.claim, "paused")
            case Stopped(reason="drain") | AtMeeting():  # held at a meeting until the others are there
                self.store.attempts.yield_back(job.claim, "queued")
            case Stopped() | Crashed():
                # A process that did not stop when it was asked to, and was ended, has stopped all the same.
                lost = ending if isinstance(ending, Crashed) else Crashed(why="it was cancelled")
                return self._settle_ended(job, lost, heartbeat, publisher)
        return False

    def _settle_ended(self, job: JobRecord, lost: Crashed, heartbeat: Heartbeat, publisher: Publisher) -> bool:
        match heartbeat.asked:
            case "cancel":
                publisher.forget_state()
                return self.store.jobs.has_ended(job.id)
            case "pause":
                self.store.attempts.yield_back(job.claim, "paused")
            case "drain":
                self.store.attempts.yield_back(job.claim, "queued")
            case None | "finish" if heartbeat.ended_child:
                silent = f"its process was silent for {self.settings.stall_seconds:g} s and was ended"
                self._lose(job, Crashed(why=silent))
            case None | "finish":  # the next attempt is asked to finish again
                self._lose(job, lost)
        return False

    def _lose(self, job: JobRecord, lost: Crashed) -> None:
        if lost.cause == "memory":
            if self._try_smaller(job, lost.why):
                return
            # The same would happen again: there is nothing smaller to try.
            tried = ", also with smaller parts of a batch" if job.memory_retries else ""
            message = f"{lost.why}{tried}: give the worker more memory, or lower recipe.batch_size or image_size"
            self.store.attempts.fail(job.claim, Fault(code=OutOfMemory.code, message=message))
            return
        why, crashed = lost.why, lost.cause != "outside"
        scratch = self.settings.scratch / "jobs" / job.id
        if lost.cause == "itself" and not has_room(scratch):
            log.warning("%s: there is no room in %s; waiting", job.id, scratch)
            wait_for_room(scratch, lambda: self.draining.is_set() or self.store.jobs.has_ended(job.id))
            why, crashed = f"{why} (the disk of its working files was full)", False
        if self.store.attempts.lose(job.claim, why, crashed=crashed) == "queued":
            self.store.notify(job.id)

    def _try_smaller(self, job: JobRecord, why: str) -> bool:
        """Queue a job that ran out of memory again, with smaller parts of a batch; False if that is of no use any more."""
        if not self.store.attempts.retry_in_smaller_parts(job.claim, why):
            return False
        # The states of the larger parts stay: they belong to another run, and are refused by the next attempt, which
        # may be at work in this folder already.
        self.store.notify(job.id)
        return True


def _listen(child: Child, heartbeat: Heartbeat, publisher: Publisher, phases: PhaseSpans) -> Ending:
    """Carry messages to the publisher until the attempt reports its end, or its process ends."""
    while True:
        try:
            message = child.receive(FromAttempt)
        except (EOFError, OSError):
            return child.crashed()
        heartbeat.heard()
        if isinstance(message, Ending):
            return message
        if isinstance(message, ProgressMade):
            phases.took(message.progress)
        retry_while_unavailable(partial(deliver, message, publisher))
