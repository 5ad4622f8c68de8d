"""What the service costs a training step: a job's images/s over those of a bare loop, each run between two of the other.

Both sides are read alike: every step has its images/s (the job's from its metrics series, which counts everything that
happens between two steps but no evaluation); the median is taken per phase, and the phases are joined by their time.
Bare, job, bare, job, …, bare: each job is compared with the mean of its two neighbours, so that a machine that slowly
becomes faster or slower favours neither.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.running import (
    ROOT,
    THREADS,
    Service,
    cpu_seconds,
    descendants,
    machine_seconds,
    running,
    tree_seconds,
    wait_until,
)
from benchmarks.start import write_start
from benchmarks.table import Findings, Row, Sample, figure
from wbar.jobs import Job, MetricsPoint
from wbar.method import CyclicSwa
from wbar.states import TERMINAL
from wbar_training.uploads.builtin_images import FASHION_FOLDERS
from wbar_training.uploads.dataset_archives import pack_builtin

GOAL = 0.98
RUN_SECONDS = 900.0  # an upper bound for one run
Steps = list[tuple[float, float]]  # images and seconds of each


@dataclass(frozen=True)
class Data:
    source: str
    max_train_images: int | None

    @property
    def name(self) -> str:
        return self.source.removeprefix("builtin:")


@dataclass(frozen=True)
class Run:
    """One run. typical, mean: images/s from the phases' medians, and all images over all seconds.

    others: processors that were busy with what is not ours meanwhile.
    """

    typical: float
    mean: float
    others: float


def measure(quick: bool) -> Findings:
    data = _data(quick)
    rounds, epochs = (1, 1) if quick else (3, 2)  # epochs of each of a job's two phases
    with running() as service, tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder:
        start = write_start(Path(folder) / "resnet20.safetensors")
        packed = Path(folder) / "packed.safetensors"
        pack_builtin(data.name, packed, data.max_train_images)
        asked: dict[str, Any] = {
            "checkpoint": service.client.checkpoints.create(start).id,
            "dataset": service.client.datasets.create(data.source, max_train_images=data.max_train_images).id,
            "method": {"cycles": 1, "high": {"epochs": epochs}, "low": {"epochs": epochs}},
        }
        resolved = service.client.jobs.create(**asked, dry_run=True)
        task = _task(resolved, start, packed)
        own = {service.pid} | descendants(service.pid)  # all but the jobs' own processes
        jobs, used = list[Run](), list[float]()
        bares = [_run(lambda: _bare(task))]
        for _ in range(rounds):
            before, began = sum(map(cpu_seconds, own)), time.perf_counter()
            jobs.append(_run(lambda: _job(service, asked)))
            used.append((sum(map(cpu_seconds, own)) - before) / (time.perf_counter() - began))
            bares.append(_run(lambda: _bare(task)))
    return _findings(_what(data, resolved), jobs, bares, used)


def _data(quick: bool) -> Data:
    if any(folder.expanduser().is_dir() for folder in FASHION_FOLDERS):
        return Data("builtin:fashion-mnist", 2_000 if quick else 10_000)
    return Data("builtin:digits", None)


def _task(job: Job, start: Path, packed: Path) -> dict[str, Any]:
    """The resolved job, as the bare loop takes it."""
    recipe, method = job.recipe.model_dump(), job.method
    assert isinstance(method, CyclicSwa)
    assert recipe["optimizer"]["name"] == "sgd"
    assert recipe["precision"] == "float32"
    return {
        "checkpoint": str(start),
        "dataset": str(packed),
        "threads": THREADS,
        "epochs": method.high.epochs + method.low.epochs,
        "batch_size": recipe["batch_size"],
        "lr": method.high.lr,
        "momentum": recipe["optimizer"]["momentum"],
        "weight_decay": recipe["optimizer"]["weight_decay"],
        "mean": recipe["normalize"]["mean"],
        "std": recipe["normalize"]["std"],
        "flip": recipe["augment"] == "pad_crop_flip",
    }


def _run(steps: Callable[[], Sequence[Steps]]) -> Run:
    """steps: runs, and gives the steps of each phase."""
    began, machine, ours = time.perf_counter(), machine_seconds(), tree_seconds(os.getpid())
    phases = steps()
    busy = machine_seconds() - machine - (tree_seconds(os.getpid()) - ours)
    images = [sum(count for count, _ in phase) for phase in phases]
    typical = [median(count / seconds for count, seconds in phase) for phase in phases]
    return Run(
        typical=sum(images) / sum(count / rate for count, rate in zip(images, typical, strict=True)),
        mean=sum(images) / sum(seconds for phase in phases for _, seconds in phase),
        others=max(0.0, busy / (time.perf_counter() - began)),
    )


def _bare(task: dict[str, Any]) -> Sequence[Steps]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.bare_loop"],
        input=json.dumps(task), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_SECONDS,
    )  # fmt: skip
    steps: Steps = json.loads(done.stdout)
    half = len(steps) // 2  # a job's two phases are equally long
    return steps[:half], steps[half:]


def _job(service: Service, asked: dict[str, Any]) -> Sequence[Steps]:
    job_id = service.submit(**asked)
    try:
        # Rarely, so that the answers cost the training nothing that can be seen.
        wait_until(lambda: service.client.jobs.get(job_id).status in TERMINAL, RUN_SECONDS, "a job", poll=2.0)
    finally:
        service.cancel(job_id)
    job = service.client.jobs.get(job_id)
    splits = service.client.datasets.get(job.dataset).splits
    if job.status != "succeeded" or splits is None or job.recipe.batch_size == "auto":
        raise RuntimeError(f"the job has {job.status}: {job.error}")
    points = service.client.jobs.metrics(job_id)
    return _steps(points, splits["train"].images, job.recipe.batch_size)


def _steps(points: Sequence[MetricsPoint], images: int, batch: int) -> Sequence[Steps]:
    """Images and seconds that each point stands for, by phase."""
    per_epoch = math.ceil(images / batch) - (images % batch == 1)  # a batch of one is left out
    last_batch = min(batch, images - batch * (per_epoch - 1))
    found: dict[str, Steps] = {"high": [], "low": []}
    done = 0
    for point in points:
        assert point.images_per_second is not None
        count = sum(batch if step % per_epoch else last_batch for step in range(done + 1, point.step + 1))
        found[point.phase].append((count, count / point.images_per_second))
        done = point.step
    return list(found.values())


def _what(data: Data, job: Job) -> str:
    limit = f" ({data.max_train_images:,} images)" if data.max_train_images else ""
    return f"training ResNet-20 on {data.name}{limit}, batch {job.recipe.batch_size}, {THREADS} threads"


def _findings(what: str, jobs: list[Run], bares: list[Run], used: list[float]) -> Findings:
    def row(name: str, speed: Callable[[Run], float], goal: float | None) -> Row:
        ours, theirs = [speed(run) for run in jobs], [speed(run) for run in bares]
        neighbours = [(before + after) / 2 for before, after in pairwise(theirs)]
        ratios = [mine / peer for mine, peer in zip(ours, neighbours, strict=True)]
        return Row(
            f"{what}: {name}",
            str(Sample(ours, "images/s")),
            f"bare loop {Sample(theirs, 'images/s')}",
            f"{median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})",
            f"≥ {goal}" if goal else "–",
            median(ratios) >= goal if goal else None,
        )

    rows = [
        row("median step", lambda run: run.typical, GOAL),
        row("all steps, and the states saved between them", lambda run: run.mean, None),
    ]
    note = (
        f"training: the service's processes other than the training one used {figure(median(used))} processors while a "
        f"job ran; what is not ours used {Sample([run.others for run in jobs], 'processors')} during the jobs and "
        f"{Sample([run.others for run in bares], 'processors')} during the bare loops"
    )
    return Findings(rows, [note])
