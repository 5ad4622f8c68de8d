"""`python -m benchmarks.gpu.trace`: where the host waits for the device in a stretch of training steps, seen in two ways.

1. torch.profiler's trace: every runtime call that waits (synchronisations, copies to pageable memory) and every operation
   that ends in one, with the step that it falls in. A *log point* is a step whose norms are reported, or the reading of the
   losses at a heartbeat: the host may wait there, and nowhere else.
2. torch.cuda.set_sync_debug_mode("warn"): torch's own warnings, by the source line that they come from.
"""

import argparse
import gzip
import json
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.gain.arms import Silent
from benchmarks.gpu.cases import CASES, Case, job_of
from benchmarks.gpu.gauge import synchronize
from benchmarks.gpu.lines import say
from benchmarks.running import ROOT
from wbar_averaging import Position
from wbar_training.loop import TrainingJob
from wbar_training.reporter import StopRequested

WARM, PROFILED, WATCHED = 40, 12, 60
STEP, LOG_POINT = "wbar step", "wbar log point"
WAITS = (
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cuStreamSynchronize",
    "cuCtxSynchronize", "cuEventSynchronize", "cudaFree",
)  # fmt: skip
# On tensors of a GPU they end in one of those calls; on the host's they wait for nothing. Counted where there is no GPU.
OPERATIONS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero")
# These do not wait by their nature, but may: a copy from pageable memory is staged by the host, memory is got from the driver.
MAY_WAIT = ("cudaMalloc", "cudaHostAlloc", "Memcpy HtoD (Pageable", "Memcpy DtoH (Pageable")
TRACE_BYTES = 4 * 2**20


class _Enough(Exception):
    """Ends the job: what was to be seen has been seen."""


class Watched(TrainingJob):
    """A job that marks its steps and log points for the profiler, and is profiled, then watched, for a while."""

    def watch(self, trace: Path) -> "Watched":
        self.trace, self.log_point, self.done = trace, False, 0
        self.profiler: profile | None = None
        self.warned: list[tuple[str, bool]] = []
        self.watching = False
        check = self.meter.check

        def marked() -> None:
            with self._marked(LOG_POINT):
                check()

        self.meter.check = marked  # type: ignore[method-assign]  # the job's own calls are to be marked
        return self

    @contextmanager
    def _marked(self, name: str) -> Iterator[None]:
        before, self.log_point = self.log_point, self.log_point or LOG_POINT in name
        with record_function(name):
            yield
        self.log_point = before

    def _train_step(self, position: Position) -> None:
        self._switch()
        logged = position.ends_phase or (position.step + 1) % self.meter.every == 0
        with self._marked(f"{STEP} {position.step}{f' ({LOG_POINT})' if logged else ''}"):
            super()._train_step(position)
        self.done += 1

    def _switch(self) -> None:
        """Start and end the profile and the watch, between two steps."""
        cuda = self.setup.device.type == "cuda"
        if self.done == WARM:
            synchronize(self.setup.device)
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
            with profile(activities=activities):  # the first one takes its time to set itself up
                torch.zeros(1, device=self.setup.device)
            self.profiler = profile(activities=activities)
            self.profiler.start()
        elif self.done == WARM + PROFILED:
            assert self.profiler is not None
            synchronize(self.setup.device)
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.trace))
            self.watching = True
            if cuda:
                torch.cuda.set_sync_debug_mode("warn")
        elif self.done == WARM + PROFILED + WATCHED:
            raise _Enough


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.trace", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="the folder for the trace, which chrome://tracing and Perfetto read")
    parser.add_argument("--case", choices=sorted(CASES), default="resnet18_32")
    options = parser.parse_args(arguments)
    case = CASES[options.case].quick() if options.quick else CASES[options.case]
    with tempfile.TemporaryDirectory(prefix="wbar-trace-") as folder:
        path = Path(folder) / "trace.json"
        warned = _watch(case, Path(folder), path, options.device)
        found = Trace.read(path)
        _say_waits(case, found)
        _say_times(case, found)
        _say_warnings(case, warned)
        if options.out is not None:
            _keep(case, path, options.out)
    return 0


def _watch(case: Case, folder: Path, trace: Path, device: str) -> Counter[tuple[str, bool]]:
    """Run the job until it has been seen; returns torch's warnings, by source line and whether at a log point."""
    spec, workspace = job_of(case, folder, device)
    job = Watched(spec, workspace, Silent()).watch(trace)
    warned: Counter[tuple[str, bool]] = Counter()

    def note(message: Any, _category: Any, filename: str, lineno: int, *_: Any) -> None:
        if job.watching and "synchronizing CUDA operation" in str(message):
            warned[f"{_short(filename)}:{lineno}", job.log_point] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]  # of any arguments
        try:
            job.run()
        except (_Enough, StopRequested):
            pass
        finally:
            if device.startswith("cuda"):
                torch.cuda.set_sync_debug_mode("default")
    return warned


def _short(filename: str) -> str:
    path = Path(filename)
    for root in (ROOT, *map(Path, sys.path)):
        if path.is_relative_to(root) and str(root) not in ("", "."):
            return str(path.relative_to(root))
    return path.name


@dataclass(frozen=True)
class Trace:
    """The complete events of a Chrome trace, in microseconds."""

    events: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Trace":
        whole = json.loads(path.read_text())
        return cls([one for one in whole["traceEvents"] if one.get("ph") == "X"])

    def of(self, *categories: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one.get("cat") in categories]

    @property
    def marks(self) -> list[dict[str, Any]]:
        return [one for one in self.of("user_annotation") if one["name"].startswith((STEP, LOG_POINT))]

    @property
    def steps(self) -> list[dict[str, Any]]:
        return sorted((one for one in self.marks if one["name"].startswith(STEP)), key=lambda one: one["ts"])

    def place(self, event: dict[str, Any]) -> tuple[str, bool]:
        """The step that an event of the host falls in (or follows), and whether at a log point."""
        within = [one for one in self.marks if one["ts"] <= event["ts"] < one["ts"] + one["dur"]]
        logged = any(LOG_POINT in one["name"] for one in within)
        before = [one["name"] for one in self.steps if one["ts"] <= event["ts"]]
        return (before[-1].removeprefix(STEP).split(" (")[0].strip() if before else "before"), logged

    def cause(self, event: dict[str, Any]) -> str:
        """The operations of the same thread that an event lies in, outermost first."""
        end = event["ts"] + event["dur"]
        around = [
            one
            for one in self.of("cpu_op")
            if one["tid"] == event["tid"] and one["ts"] <= event["ts"] and one["ts"] + one["dur"] >= end
        ]
        return " > ".join(one["name"] for one in sorted(around, key=lambda one: one["ts"])[:4] if one is not event)

    @property
    def seconds(self) -> float:
        """From the first step's begin to the end of the last one, or of the device's last work."""
        ends = [one["ts"] + one["dur"] for one in (*self.steps, *self.work)]
        return (max(ends) - self.steps[0]["ts"]) / 1e6

    @property
    def work(self) -> list[dict[str, Any]]:
        begin = self.steps[0]["ts"]
        return [one for one in self.of("kernel", "gpu_memcpy", "gpu_memset") if one["ts"] >= begin]

    @property
    def busy(self) -> float:
        """Seconds in which the device did at least one thing."""
        total, until = 0.0, 0.0
        for one in sorted(self.work, key=lambda one: one["ts"]):
            begin, end = max(one["ts"], until), one["ts"] + one["dur"]
            total, until = total + max(0.0, end - begin), max(until, end)
        return total / 1e6


def _say_waits(case: Case, trace: Trace) -> None:
    """One line: how often, and where, the host waited, at log points and outside them."""
    inside, outside = Counter[str](), Counter[str]()
    where: list[dict[str, Any]] = []
    # The calls after the last step, the profiler's own end among them, are no part of the steps.
    begin, end = trace.steps[0]["ts"], trace.steps[-1]["ts"] + trace.steps[-1]["dur"]
    waits = WAITS if trace.of("kernel") else (*WAITS, *OPERATIONS)
    for event in trace.of("cpu_op", "cuda_runtime", "cuda_driver"):
        if event["name"] not in waits or not begin <= event["ts"] <= end:
            continue
        step, logged = trace.place(event)
        (inside if logged else outside)[event["name"]] += 1
        if not logged:
            spent = round(event["dur"], 1)
            where.append({"what": event["name"], "in": trace.cause(event), "step": step, "microseconds": spent})
    may = Counter[str]()
    for event in trace.of("cuda_runtime", "gpu_memcpy"):
        for name in MAY_WAIT:
            if event["name"].startswith(name) and begin <= event["ts"] <= end:
                may[name] += 1
    say(
        f"trace/{case.name}/waits", steps=len(trace.steps), at_log_points=dict(inside), outside_log_points=dict(outside),
        waits_outside=sum(outside.values()), goal=0, where=where[:20], may_wait=dict(may),
    )  # fmt: skip


def _say_times(case: Case, trace: Trace) -> None:
    """One line: the time of a step, the host's and the device's share of it, and the kernels that take most."""
    steps = trace.steps
    count = len(steps)
    waited = 0.0
    for one in trace.of("cuda_runtime", "cuda_driver"):
        if one["name"] in WAITS and steps[0]["ts"] <= one["ts"] <= steps[-1]["ts"] + steps[-1]["dur"]:
            waited += one["dur"]
    host = sum(one["dur"] for one in steps)
    by_name: Counter[str] = Counter()
    for one in trace.of("kernel"):
        by_name[one["name"]] += one["dur"]
    launches = Counter(one["name"] for one in trace.of("cuda_runtime", "cuda_driver") if "Launch" in one["name"])
    say(
        f"trace/{case.name}/times",
        steps=count,
        milliseconds_per_step=1e3 * trace.seconds / count,
        host_milliseconds_per_step=(host - waited) / 1e3 / count,
        waiting_milliseconds_per_step=waited / 1e3 / count,
        device_milliseconds_per_step=1e3 * trace.busy / count,
        device_idle=1 - trace.busy / trace.seconds,
        kernels_per_step=len(trace.of("kernel")) / count,
        launches_per_step={name: number / count for name, number in launches.items()},
        top_kernels=[{"kernel": name[:120], "microseconds_per_step": round(spent / count, 1)}
                     for name, spent in by_name.most_common(10)],
        note="under the profiler, which slows the host down",
    )  # fmt: skip


def _say_warnings(case: Case, warned: Counter[tuple[str, bool]]) -> None:
    """One line: torch's own warnings of synchronising calls."""
    outside = {line: count for (line, logged), count in warned.items() if not logged}
    inside = {line: count for (line, logged), count in warned.items() if logged}
    say(
        f"trace/{case.name}/sync_warnings", steps=WATCHED, outside_log_points=outside, at_log_points=inside,
        waits_outside=sum(outside.values()), goal=0,
    )  # fmt: skip


def _keep(case: Case, path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"trace-{case.name}.json.gz"
    with open(path, "rb") as source, gzip.open(kept, "wb") as out:
        shutil.copyfileobj(source, out)
    if kept.stat().st_size > TRACE_BYTES:
        size = kept.stat().st_size
        kept.unlink()
        say(f"trace/{case.name}/file", left_out=f"the trace has {size:,} bytes")
        return
    say(f"trace/{case.name}/file", file=kept.name, bytes=kept.stat().st_size)


if __name__ == "__main__":
    sys.exit(main())
