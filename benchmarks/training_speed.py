"""What the service costs a training step: a job's images/s over those of a bare loop, each run between two of the other.

Both sides are read alike: every step has its images/s (the job's from its metrics series, which counts everything that
happens between two steps but no evaluation); the median is taken per phase, and the phases are joined by their time.
Bare, job, bare, job, …, bare: each job is compared with the mean of its two neighbours, so that a machine that slowly
becomes faster or slower favours neither.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.running import ROOT, THREADS, Service, cpu_seconds, descendants, running, wait_until
from benchmarks.start import write_start
from benchmarks.table import Findings, Row, Sample, figure
from training.dataset_files import FASHION_FOLDERS, pack_builtin
from wbar.jobs import Job, MetricsPoint
from wbar.states import TERMINAL

GOAL = 0.98
RUN_SECONDS = 900.0  # an upper bound for one run


@dataclass(frozen=True)
class Data:
    source: str
    max_train_images: int | None

    @property
    def name(self) -> str:
        return self.source.removeprefix("builtin:")


@dataclass(frozen=True)
class Speed:
    """images/s of one run. typical: phases' medians joined; mean: all images over all seconds."""

    typical: float
    mean: float


def measure(quick: bool) -> Findings:
    data = _data(quick)
    rounds, epochs = (1, 1) if quick else (3, 2)  # epochs of each of a job's two phases
    jobs: list[Speed] = []
    bares: list[Speed] = []
    beside: list[float] = []
    with running() as service, tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder:
        start = write_start(Path(folder) / "resnet20.safetensors")
        packed = Path(folder) / "packed.safetensors"
        pack_builtin(data.name, packed, data.max_train_images)
        checkpoint = service.client.checkpoints.create(start).id
        dataset = service.client.datasets.create(data.source, max_train_images=data.max_train_images).id
        asked = {
            "checkpoint": checkpoint,
            "dataset": dataset,
            "method": {"cycles": 1, "high": {"epochs": epochs}, "low": {"epochs": epochs}},
        }
        resolved = service.client.jobs.create(**asked, dry_run=True)
        task = _task(resolved, start, packed)
        bares.append(_bare(task))
        for _ in range(rounds):
            speed, share = _job(service, asked)
            jobs.append(speed)
            beside.append(share)
            bares.append(_bare(task))
    return _findings(data, resolved, jobs, bares, beside)


def _data(quick: bool) -> Data:
    if any(folder.expanduser().is_dir() for folder in FASHION_FOLDERS):
        return Data("builtin:fashion-mnist", 2_000 if quick else 10_000)
    return Data("builtin:digits", None)


def _task(job: Job, start: Path, packed: Path) -> dict[str, Any]:
    """The resolved job, as the bare loop takes it."""
    recipe, method = job.recipe.model_dump(), job.method
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


def _bare(task: dict[str, Any]) -> Speed:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bare_loop"],
        input=json.dumps(task), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_SECONDS,
    )  # fmt: skip
    found = json.loads(done.stdout)
    steps = list(zip(found["images"], found["seconds"], strict=True))
    half = len(steps) // 2  # a job's two phases are equally long
    return _speed([steps[:half], steps[half:]])


def _job(service: Service, asked: dict[str, Any]) -> tuple[Speed, float]:
    """The job's speed, and the processor time that the service's own processes used beside it, per second."""
    own = [service.pid, *_own_processes(service)]
    before = sum(map(cpu_seconds, own))
    job_id = service.client.jobs.create(**asked).id
    try:
        # Rarely, so that the answers cost the training nothing that can be seen.
        wait_until(lambda: service.client.jobs.get(job_id).status in TERMINAL, RUN_SECONDS, "a job", poll=2.0)
    except BaseException:
        service.client.jobs.cancel(job_id)
        raise
    job = service.client.jobs.get(job_id)
    if job.status != "succeeded":
        raise RuntimeError(f"the job has {job.status}: {job.error}")
    used = sum(map(cpu_seconds, own)) - before
    dataset = service.client.datasets.get(job.dataset)
    assert dataset.splits is not None
    assert job.recipe.batch_size != "auto"
    points = service.client.jobs.metrics(job_id)
    steps = _steps(points, dataset.splits["train"].images, job.recipe.batch_size)
    speed = _speed([steps[phase] for phase in ("high", "low")])
    return speed, used / sum(seconds for phase in steps.values() for _, seconds in phase)


def _own_processes(service: Service) -> set[int]:
    """Those that are there before the job's attempt is started."""
    return descendants(service.pid)


def _steps(points: Sequence[MetricsPoint], images: int, batch: int) -> dict[str, list[tuple[float, float]]]:
    """Images and seconds of the steps that each point stands for, by phase."""
    per_epoch = math.ceil(images / batch) - (images % batch == 1)
    found: dict[str, list[tuple[float, float]]] = {"high": [], "low": []}
    last = 0
    for point in points:
        sizes = [
            batch if step % per_epoch else images - batch * (per_epoch - 1) for step in range(last + 1, point.step + 1)
        ]
        last = point.step
        assert point.images_per_second is not None
        count = min(sum(sizes), batch * len(sizes))
        found[point.phase].append((count, count / point.images_per_second))
    return found


def _speed(phases: Sequence[Sequence[tuple[float, float]]]) -> Speed:
    """phases: for each the images and seconds of its steps."""
    images = [sum(count for count, _ in phase) for phase in phases]
    typical = [median(count / seconds for count, seconds in phase) for phase in phases]
    spent = sum(seconds for phase in phases for _, seconds in phase)
    return Speed(
        typical=sum(images) / sum(count / rate for count, rate in zip(images, typical, strict=True)),
        mean=sum(images) / spent,
    )


def _findings(data: Data, job: Job, jobs: list[Speed], bares: list[Speed], beside: list[float]) -> Findings:
    limit = f" ({data.max_train_images:,} images)" if data.max_train_images else ""
    what = f"training, ResNet-20 on {data.name}{limit}, batch {job.recipe.batch_size}, {THREADS} threads: job over bare loop"
    rows = []
    for name, attribute, goal in (
        ("median step", "typical", GOAL),
        ("all steps, states saved between them", "mean", None),
    ):
        ours = [getattr(speed, attribute) for speed in jobs]
        theirs = [getattr(speed, attribute) for speed in bares]
        neighbours = [(before + after) / 2 for before, after in zip(theirs, theirs[1:], strict=False)]
        ratios = Sample([mine / peer for mine, peer in zip(ours, neighbours, strict=True)], "")
        rows.append(
            Row(
                f"{what}, {name}",
                str(Sample(ours, "images/s")),
                f"bare loop {Sample(theirs, 'images/s')}",
                f"{ratios.median:.3f} ({min(ratios.values):.3f}–{max(ratios.values):.3f})",
                f"≥ {goal}" if goal else "–",
                ratios.median >= goal if goal else None,
            )
        )
    note = (
        f"beside a job, the service's own processes used {figure(median(beside))} processor seconds per second of "
        "training (evaluation and the storing of results included)"
    )
    return Findings(rows, [note])
