"""What a study costs beyond the training steps of its jobs: twelve small jobs of one start and dataset, one at a time.

    python -m benchmarks.study_cost --epochs 6 --snapshot-epochs 1 --repetitions 2

A service of its own is started and warmed up by one job. Steps are the seconds of optimizer steps, from each job's series;
jobs are from `started_at` to `finished_at`; the study is from its POST to the last job's end. Processor seconds are of all of
the service's processes.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.running import THREADS, Service, running, tree_seconds
from benchmarks.start import write_start

BATCHES, SEEDS = [64, 128, 256], 4


@dataclass(frozen=True)
class Cost:
    """Seconds of one study, in all of its jobs together but for `wall`."""

    jobs: int
    wall: float
    cpu: float
    running: float
    steps: float

    @property
    def ratio(self) -> float:
        """The study over the sum of its training steps."""
        return self.wall / self.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("digits", "fashion-mnist"), default="digits")
    parser.add_argument("--images", type=int, default=None, help="training images, at most")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--snapshot-epochs", type=int, default=1, help="after which w̄ is scored, again and again")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--threads", type=int, default=THREADS, help="of each job")
    asked = parser.parse_args()
    with running(threads=asked.threads) as service, tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder:
        checkpoint = service.client.checkpoints.create(write_start(Path(folder) / "start.safetensors")).id
        dataset = service.client.datasets.create(f"builtin:{asked.dataset}", max_train_images=asked.images).id
        job: dict[str, Any] = {
            "checkpoint": checkpoint,
            "dataset": dataset,
            "method": method(asked.epochs, asked.snapshot_epochs),
            "recipe": {"augment": "none", "optimizer": {"nesterov": False, "weight_decay": 0}},
        }
        warm = service.client.jobs.create(**{**job, "method": method(1, 1), "seed": 99})
        assert warm.id is not None
        service.client.jobs.wait(warm.id)
        costs = [measured(service, job, asked.seeds) for _ in range(asked.repetitions)]
    for cost in costs:
        print(json.dumps(asdict(cost) | {"ratio": round(cost.ratio, 3), "running_ratio": cost.running / cost.steps}))
    print(f"a study of {costs[0].jobs} jobs: {statistics.median(one.ratio for one in costs):.2f} × its training steps")


def method(epochs: int, snapshot_epochs: int) -> dict[str, Any]:
    """Return a walk at a constant rate, whose last weights are scored so often."""
    return {
        "type": "lawa", "window": 1, "snapshot_epochs": snapshot_epochs, "epochs": epochs, "shape": "constant",
        "back_off": False,
    }  # fmt: skip


def measured(service: Service, job: dict[str, Any], seeds: int) -> Cost:
    """Run one study to its end."""
    client, before, began = service.client, tree_seconds(service.pid), time.monotonic()
    study = client.studies.create(
        job, name="cost", batch_sizes=BATCHES, rates=[0.05], seeds=list(range(seeds)), at_once=1
    )
    client.studies.wait(study.id, poll=0.1)
    wall, cpu = time.monotonic() - began, tree_seconds(service.pid) - before
    report, ran = client.studies.report(study.id), 0.0
    for one in report.jobs:
        done = client.jobs.get(one.job)
        assert done.status == "succeeded", done.error
        assert done.started_at is not None
        assert done.finished_at is not None
        ran += (datetime.fromisoformat(done.finished_at) - datetime.fromisoformat(done.started_at)).total_seconds()
    steps = sum(epoch.seconds or 0.0 for one in report.jobs for epoch in one.epochs)
    client.studies.delete(study.id)
    return Cost(len(report.jobs), wall, cpu, ran, steps)


if __name__ == "__main__":
    main()
