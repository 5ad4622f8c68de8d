"""Uploads are streamed: while the API receives a gigabyte, what it holds in memory does not grow."""

import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.running import Service, forget_peak, memory, running
from benchmarks.table import Findings, Row
from benchmarks.upload import GIB, MIB, random_file, send, stamp

GOAL = 32 * MIB
SAMPLE_SECONDS = 0.05


class Watch(threading.Thread):
    """The resident memory of a process, looked at again and again until the block ends."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.seen: list[int] = []
        self._pid, self._done = pid, threading.Event()

    def run(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.seen.append(memory(self._pid, "VmRSS"))

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


@dataclass(frozen=True)
class Use:
    """Bytes resident before and after an upload, in the middle of what was seen while it came, and at the peak."""

    before: int
    typical: int
    peak: int
    after: int

    @property
    def growth(self) -> int:
        return self.peak - self.before


def measure(quick: bool) -> Findings:
    size, repetitions = (128 * MIB, 2) if quick else (GIB, 3)
    with tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder, running() as service:
        path = random_file(Path(folder) / "random", size)
        send(service, random_file(Path(folder) / "small", MIB))  # whatever is loaded late is loaded now
        uses = []
        for repetition in range(repetitions):
            stamp(path, repetition)
            uses.append(_use(service, path))
    # How much waits for the disk depends on the disk: the worst upload counts.
    worst = max(uses, key=lambda use: use.growth)
    row = Row(
        f"memory of the API while it receives {size // MIB:,} MiB, worst of {repetitions}",
        f"grows by {worst.growth / MIB:.1f} MiB at its peak",
        f"before {worst.before / MIB:.1f} MiB, while {worst.typical / MIB:.1f} (median; peak {worst.peak / MIB:.1f}), "
        f"after {worst.after / MIB:.1f}",
        f"{worst.peak / worst.before:.2f}",
        f"< {GOAL // MIB} MiB growth",
        worst.growth < GOAL,
    )
    return Findings([row])


def _use(service: Service, path: Path) -> Use:
    api = service.api
    before = memory(api, "VmRSS")
    forget_peak(api)
    with Watch(api) as watch:
        send(service, path)
    return Use(before, int(median(watch.seen)), memory(api, "VmHWM"), memory(api, "VmRSS"))
