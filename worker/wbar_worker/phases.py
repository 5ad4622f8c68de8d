"""The phases of an attempt as spans, from the progress that it reports: a training process that is killed has its spans too."""

import time
from collections.abc import Callable

from wbar.jobs import Progress
from wbar_store.tracing import Tracing, Value


class PhaseSpans:
    """Records a span for each phase of each cycle, once it is over. The first begins here."""

    def __init__(self, tracing: Tracing, clock: Callable[[], float] = time.time) -> None:
        self._tracing, self._clock = tracing, clock
        self._began, self._latest = clock(), Progress(
            phase="loading", cycle=0, cycles=0, epoch=0, step=0, total_steps=0, fraction=0.0
        )  # fmt: skip

    def took(self, progress: Progress) -> None:
        """Take the progress that the attempt reported; a new phase or cycle ends the phase before."""
        if not self._tracing.enabled:
            return
        if (progress.phase, progress.cycle) != (self._latest.phase, self._latest.cycle):
            self.end()
        self._latest = progress

    def end(self) -> None:
        """Record the phase that is at work; the next one begins."""
        ended, latest = self._clock(), self._latest
        attributes: dict[str, Value] = {"wbar.cycle": latest.cycle, "wbar.step": latest.step}
        self._tracing.record(latest.phase, self._began, ended, attributes)
        self._began = ended
