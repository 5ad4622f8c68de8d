"""Uploads are streamed: while the API receives a gigabyte, what it holds in memory does not grow."""

import tempfile
import threading
from pathlib import Path

from benchmarks.running import forget_peak, memory, running
from benchmarks.table import Findings, Row
from benchmarks.upload import GIB, MIB, random_file, send

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


def measure(quick: bool) -> Findings:
    size = 128 * MIB if quick else GIB
    with tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder, running() as service:
        path, small = random_file(Path(folder) / "random", size), random_file(Path(folder) / "small", MIB)
        send(service, small)  # whatever is loaded late is loaded now
        api = service.api
        before = memory(api, "VmRSS")
        forget_peak(api)
        with Watch(api) as watch:
            send(service, path)
        peak, after = memory(api, "VmHWM"), memory(api, "VmRSS")
    middle = sorted(watch.seen)[len(watch.seen) // 2]
    growth = peak - before
    row = Row(
        f"memory of the API while it receives {size // MIB:,} MiB",
        f"grows by {growth / MIB:.1f} MiB at its peak",
        f"before {before / MIB:.1f} MiB, while {middle / MIB:.1f} (median; peak {peak / MIB:.1f}), after {after / MIB:.1f}",
        f"{peak / before:.2f}",
        f"< {GOAL // MIB} MiB growth",
        growth < GOAL,
    )
    return Findings([row])
