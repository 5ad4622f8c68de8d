"""How long a user waits: from just before POST /v1/jobs until the job says that a training step was done.

The worker is warm (its forkserver has imported torch, a job has run before) and idle. What the user sees first is
either the first metrics point or a polled row whose progress is at step 1 or later; both are watched, by polling.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.running import Service, descendants, running, wait_until
from benchmarks.start import write_start
from benchmarks.table import Findings, Row, Sample
from wbar.states import TERMINAL

GOAL = 1.0
POLL = 0.03
JOB_SECONDS = 120.0


@dataclass(frozen=True)
class Wait:
    """Seconds from before the POST. answered: its 201; claimed: by the worker (`started_at`)."""

    answered: float
    claimed: float
    loading: float
    metrics: float
    progress: float


def measure(quick: bool) -> Findings:
    repetitions = 2 if quick else 5
    return _findings(list(waits(repetitions, "cpu"))[1:])  # the first job warmed the worker up


def waits(repetitions: int, device: str) -> Iterator[Wait]:
    """Yield the wait of each job of one service on `device`, as soon as it is over; the first warms the worker up."""
    with running(device) as service, tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder:
        start = write_start(Path(folder) / "resnet20.safetensors")
        checkpoint = service.client.checkpoints.create(start).id
        dataset = service.client.datasets.create("builtin:digits").id
        idle = len(descendants(service.train_worker))
        for _ in range(1 + repetitions):
            yield _wait(service, checkpoint, dataset)
            # The slot is free once the attempt's process is gone, which is after the row says `cancelled`.
            wait_until(lambda: len(descendants(service.train_worker)) <= idle, 30, "the attempt to end")
            time.sleep(0.5)


def _wait(service: Service, checkpoint: str, dataset: str) -> Wait:
    client = service.client
    began, wall = time.perf_counter(), time.time()
    job_id = service.submit(checkpoint=checkpoint, dataset=dataset)
    seen = {"answered": time.perf_counter() - began}
    try:
        while "metrics" not in seen or "progress" not in seen:
            job = client.request("GET", f"/v1/jobs/{job_id}").json()
            now = time.perf_counter() - began
            if job["progress"] is not None:
                seen.setdefault("loading", now)
                if job["progress"]["step"] >= 1:
                    seen.setdefault("progress", now)
            if "metrics" not in seen and client.request("GET", f"/v1/jobs/{job_id}/metrics").json()["data"]:
                seen["metrics"] = time.perf_counter() - began
            if job["status"] in TERMINAL or now > JOB_SECONDS:
                raise RuntimeError(
                    f"{job_id} is {job['status']} after {now:.1f} s and was not seen to train: {job['error']}"
                )
            time.sleep(POLL)
        return Wait(claimed=_seconds(job, "started_at") - wall, **seen)
    finally:
        service.cancel(job_id)


def _seconds(job: dict[str, Any], field: str) -> float:
    return datetime.fromisoformat(job[field]).timestamp()


def _findings(waits: list[Wait]) -> Findings:
    def sample(field: str) -> Sample:
        return Sample([getattr(wait, field) for wait in waits])

    rows = []
    for name, field in (("progress at step ≥ 1 in the row", "progress"), ("first metrics point", "metrics")):
        found = sample(field)
        rows.append(
            Row(
                f"submit → first training step, warm worker, ResNet-20 on digits: {name}",
                str(found),
                f"{GOAL:g} s",
                f"{found.median / GOAL:.2f}",
                f"≤ {GOAL:g} s",
                found.median <= GOAL if field == "progress" else None,
            )
        )
    stations = ", ".join(
        f"{name} {sample(field).median:.2f}"
        for name, field in (
            ("201 answered", "answered"),
            ("claimed by the worker", "claimed"),
            ("first progress (loading)", "loading"),
            ("first metrics point", "metrics"),
            ("progress at step ≥ 1", "progress"),
        )
    )
    return Findings(rows, [f"median seconds after the POST began: {stations} (polled every {POLL * 1000:.0f} ms)"])
