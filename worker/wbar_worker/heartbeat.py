"""The heartbeat of a job: progress out, lease renewed, a reason to stop back in.

heartbeat(claim, progress) → keep going | stop(reason)        every half second, on a thread of its own
"""

import logging
import threading
import time
from collections.abc import Callable

from wbar.jobs import Progress
from wbar_store import logs
from wbar_store.claims import Claim
from wbar_store.store import Store
from wbar_training.messages import Stop, StopReason
from wbar_worker.processes import Child
from wbar_worker.settings import WorkerSettings

log = logging.getLogger("wbar.worker")

BEAT_SECONDS = 0.5
EVENT_SECONDS = 1.0  # progress events are this far apart; the row itself is written with every beat
URGENCY: dict[StopReason | None, int] = {None: 0, "finish": 1, "pause": 2, "drain": 3, "cancel": 4}


class Heartbeat(threading.Thread):
    """Beats for one attempt, from its claim to its end.

    It goes on while files are fetched and stored, so that a slow store never costs the lease.

    progress: the latest that the attempt reported.
    asked: the most urgent reason to stop that was passed on to the attempt.
    ended_child: whether the attempt's process was killed here, because it did not answer.
    """

    def __init__(
        self,
        store: Store,
        settings: WorkerSettings,
        claim: Claim,
        draining: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name=f"heartbeat-{claim.id}", daemon=True)
        self._store, self._settings, self._claim, self._draining = store, settings, claim, draining
        self._clock = clock
        self._belongs = logs.current()
        self._done, self._news, self._watching = threading.Event(), threading.Event(), threading.Lock()
        self._child: Child | None = None  # none yet while the job's files are fetched
        self._heard_at = self._asked_at = clock()
        self.progress: Progress | None = None
        self.asked: StopReason | None = None
        self.ended_child = False

    def watch(self, child: Child) -> None:
        """Pass reasons to stop on to this child from now on, and end it if it falls silent.

        Silence is counted from here, however long the fetch before took.
        """
        with self._watching:
            self._child, self._heard_at = child, self._clock()

    def unwatch(self) -> None:
        """Send nothing more through the child's pipe: it has ended, or is about to be ended."""
        with self._watching:
            self._child = None

    def heard(self) -> None:
        """Note that the child sent a message, so that it does not count as silent."""
        self._heard_at = self._clock()

    def took(self, progress: Progress) -> None:
        """Take the attempt's progress; a new phase and the first step are passed on at once."""
        old, self.progress = self.progress, progress
        if old is None or old.phase != progress.phase or (old.step == 0) != (progress.step == 0):
            self._news.set()

    def run(self) -> None:
        with logs.belonging_to(**self._belongs):
            self._beat()

    def _beat(self) -> None:
        sent: Progress | None = None
        event_at, counted = 0.0, self._clock()
        while not self._done.is_set():
            self._news.wait(BEAT_SECONDS)
            self._news.clear()
            progress = self.progress if self.progress is not sent else None
            is_event = progress is not None and self._clock() - event_at >= EVENT_SECONDS
            reason: StopReason | None = "drain" if self._draining.is_set() else None
            try:
                beat, ran = self._clock(), self._clock() - counted
                answer = self._store.attempts.heartbeat(
                    self._claim, self._settings.lease_seconds, progress, is_event, ran, self._settings.max_job_seconds
                )
            except Exception:
                # The database is away: the attempt goes on, and the fence protects the row if another has taken over.
                log.exception("no heartbeat for %s", self._claim.id)
            else:
                sent, counted = progress or sent, beat
                event_at = self._clock() if is_event else event_at
                reason = max("cancel" if answer == "gone" else answer, reason, key=URGENCY.__getitem__)
            self.check(reason)

    def check(self, reason: StopReason | None) -> None:
        """Pass a reason to stop on to the child; end a child that does not answer it, or has been silent for too long."""
        with self._watching:
            child, now = self._child, self._clock()
            if child is None:
                return
            if URGENCY[reason] > URGENCY[self.asked] and reason is not None:
                self.asked, self._asked_at = reason, now
                child.send(Stop(reason=reason))
            # A pause waits for the next training step, as long as the attempt sends messages.
            overdue = self.asked in ("drain", "cancel") and now - self._asked_at > self._settings.drain_seconds
            if overdue or now - self._heard_at > self._settings.stall_seconds:
                log.warning("%s: the training process does not answer and is ended", self._claim.id)
                self.ended_child = True
                child.process.kill()

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._done.set()
        self._news.set()
        self.join()
