"""A job as TensorBoard's event files, which grow while it trains. What the folder has already is read first, and not repeated.

The files are written and read by the `tensorboard` package itself: who looks at them has it anyway.
"""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util import tensor_util

from wbar.exports.series import Place, Sample


class EventFiles:
    """The event files of one job in a folder; a context manager.

    Raises ValueError where the folder has the event files of something else.
    """

    def __init__(self, folder: Path, job_id: str) -> None:
        self._mark = folder / "wbar-job"
        if self._mark.exists() and self._mark.read_text() != job_id:
            raise ValueError(
                f"{folder} has the event files of {self._mark.read_text()}: give {job_id} another --logdir"
            )
        if not self._mark.exists() and any(folder.glob("*tfevents*")):
            raise ValueError(f"{folder} has event files of another program: give {job_id} another --logdir")
        self._written = dict[Place, np.float32]()
        for path in sorted(folder.glob("*tfevents*")):
            self._read(path)
        self._writer = EventFileWriter(str(folder))
        self._mark.write_text(job_id)

    def _read(self, path: Path) -> None:
        # The loader ends before a record that was cut off when its writer was killed: that one is written again.
        for event in EventFileLoader(str(path)).Load():
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                self._written.clear()
            for value in event.summary.value:
                self._written[value.tag, event.step] = np.float32(tensor_util.make_ndarray(value.tensor).item())

    def write(self, samples: Iterable[Sample]) -> int:
        """Write the samples that the folder lacks, and return their number; they are on disk then.

        Where the job has started over, and has other samples than those written, TensorBoard is told to drop them.
        """
        wanted = {one.place: one for one in samples}
        if any(place not in wanted or not self._same(wanted[place]) for place in self._written):
            self._writer.add_event(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
            self._written.clear()
        missing = [one for place, one in wanted.items() if place not in self._written]
        for one in missing:
            summary = Summary(value=[Summary.Value(tag=one.tag, simple_value=one.value)])
            self._writer.add_event(Event(wall_time=one.at, step=one.step, summary=summary))
            self._written[one.place] = np.float32(one.value)
        self._writer.flush()
        return len(missing)

    def _same(self, sample: Sample) -> bool:
        return bool(np.array_equal(self._written[sample.place], np.float32(sample.value), equal_nan=True))

    def __enter__(self) -> "EventFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        self._writer.close()
