"""Rows to begin with: a ready checkpoint and dataset, and the spec of a small job on them."""

from typing import Any

from sqlalchemy import insert

from wbar.jobs import MetricsPoint, Progress
from wbar.method import CyclicSwa
from wbar.recipe import Recipe
from wbar.results import Comparisons, HeldOut, JobResult, WeightsFile
from wbar.scores import Score
from wbar.spec import JobSpec, Network, StoredDataset, StoredWeights
from wbar_store.database import Database, now
from wbar_store.tables import checkpoints, datasets

SCORE = Score(accuracy=0.5, loss=0.7, ece=0.1)
PROGRESS = Progress(phase="high", cycle=1, cycles=2, epoch=1, step=1, total_steps=10, fraction=0.1)


def stored(checkpoint: str = "ckpt_1") -> StoredWeights:
    return StoredWeights(id=checkpoint, sha256="a" * 64, blob="b" * 64, prefix="", network=Network("resnet20", 10))


def spec(checkpoint: str = "ckpt_1", **changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "start": stored(checkpoint),
        "dataset": StoredDataset(id="ds_1", sha256="c" * 64, blob="d" * 64),
        "network": Network("resnet20", 10),
        "classes": None,
        "method": CyclicSwa(),
        "recipe": Recipe(),
        "seed": 0,
    }
    return JobSpec(**values | changes)


def result() -> JobResult:
    return JobResult(
        weights=WeightsFile(bytes=1, sha256="e" * 64),
        metrics=Comparisons(start=SCORE, start_recomputed=SCORE, last=SCORE, averaged=SCORE, ensemble=SCORE),
        curve=[],
        verdict="same",
        held_out=HeldOut(selection=0, report=10),
    )


def point(step: int, loss: float = 0.5) -> MetricsPoint:
    return MetricsPoint(
        step=step, epoch=1, cycle=1, phase="high", lr=0.1, loss=loss, pull_loss=0.0, grad_norm=1.0, distance_to_mean=0.0,
        images_per_second=None,
    )  # fmt: skip


def insert_inputs(database: Database, tenant: str = "default") -> None:
    """The checkpoint ckpt_1 and the dataset ds_1, ready."""
    common = {"tenant": tenant, "name": "x", "status": "ready", "attempts": 0, "created_at": now()}
    with database.write() as connection:
        connection.execute(insert(checkpoints).values(id="ckpt_1", bytes=1, sha256="a" * 64, given={}, **common))
        connection.execute(insert(datasets).values(id="ds_1", task="classification", options={}, **common))
