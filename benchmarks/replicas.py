"""Replicas on more workers: images per second with two training processes beside one, and a fleet of 64 that only waits.

    python -m benchmarks.replicas --part scaling
    python -m benchmarks.replicas --part meetings --seeds 3
    python -m benchmarks.replicas --part fleet --workers 64 --seconds 30

*scaling* runs one job with replicas through a real `wbar up`, with one process at a time and with two, one thread each: on a
machine with two cores that nothing else uses. Its limit is what the machine gives two plain training loops that know nothing of
each other (`benchmarks.bare_loop`). *fleet* replaces the training by waiting: so many workers, each a thread on the
real store, claim, send a heartbeat every second, keep their sums as a blob and end. What is more than the waiting is the
store's; then the sums are joined as the worker joins them. *meetings* compares replicas that are joined once, at the end, with
such as meet on their way (`method.join_every`), by accuracy, loss and seconds.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import mean, median, quantiles

import torch
from safetensors.torch import save_file

from benchmarks.running import ROOT, running
from benchmarks.serving import MINE, serving
from benchmarks.start import write_start
from wbar.jobs import Job, Progress
from wbar.method import CyclicSwa
from wbar.results import Comparisons, HeldOut, JobResult, WeightsFile
from wbar.scores import Score
from wbar.spec import Network
from wbar_store.attempts import ResultBlobs
from wbar_store.store import Store
from wbar_training import exact_mean
from wbar_training.averages.average import Finished, empty_like, mean_of
from wbar_training.networks.architectures import initialized

REPLICAS = 4
HIGH = 0.05
WAYS: dict[str, dict[str, float]] = {
    "joined once": {},
    "every 2, from the mean": {"join_every": 2},
    "every cycle, from the mean": {"join_every": 1},
    "every cycle, half way": {"join_every": 1, "join_keep": 0.5},
}
BEAT_SECONDS, LEASE_SECONDS = 1.0, 60.0
SCORE = Score(accuracy=0.5, loss=0.7, ece=0.1)


def scaling(cycles: int, images: int, repetitions: int) -> None:
    """Print images per second of all replicas together, from the first one's start to the last one's end, and the limit."""
    ours: dict[int, list[float]] = {1: [], 2: []}
    plain: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repetitions):
        for processes in (1, 2):
            ours[processes].append(_speed(processes, cycles, images))
            plain[processes].append(_plain_speed(processes, cycles, images))
    for name, speeds in (("replicas", ours), ("plain loops", plain)):
        one, two = median(speeds[1]), median(speeds[2])
        print(f"{name}: {one:.0f} images/s one at a time, {two:.0f} two at a time, one thread each: {two / one:.2f}")
    print(f"medians of {repetitions}; the goal of the replicas is 1.8")


def _plain_speed(processes: int, cycles: int, images: int) -> float:
    """Return images per second of so many plain loops beside one another, from the first step of each on."""
    with tempfile.TemporaryDirectory() as folder:
        draws = torch.Generator().manual_seed(0)
        tensors = {
            "train.images": torch.randint(256, (images, 1, 8, 8), generator=draws, dtype=torch.uint8),
            "train.labels": torch.randint(10, (images,), generator=draws),
        }
        save_file(tensors, Path(folder) / "data.safetensors")
        task = {
            "checkpoint": str(write_start(Path(folder) / "start.safetensors")),
            "dataset": str(Path(folder) / "data.safetensors"),
            "threads": 1, "epochs": 2 * cycles, "batch_size": 64, "lr": 0.002, "momentum": 0.9, "weight_decay": 5e-4,
            "mean": [0.5], "std": [0.5], "flip": False,
        }  # fmt: skip
        command = [sys.executable, "-P", "-m", "benchmarks.bare_loop"]
        pipe = subprocess.PIPE
        loops = [subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe) for _ in range(processes)]
        try:
            with ThreadPoolExecutor() as threads:  # all begin at once
                answers = list(threads.map(lambda one: one.communicate(json.dumps(task), timeout=600)[0], loops))
        finally:
            for loop in loops:
                loop.kill()
    steps = [json.loads(answer) for answer in answers]
    return sum(sum(count for count, _ in one) / sum(seconds for _, seconds in one) for one in steps)


def _speed(workers: int, cycles: int, images: int) -> float:
    with tempfile.TemporaryDirectory() as folder, running(workers=workers, threads=1) as service:
        client = service.client
        checkpoint = client.checkpoints.create(write_start(Path(folder) / "start.safetensors"))
        dataset = client.datasets.create("builtin:digits", max_train_images=images)
        method = {"cycles": cycles, "high": {"lr": 0.02}, "low": {"lr": 0.002}, "replicas": REPLICAS}
        job = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, method=method)
        assert job.id is not None
        done = client.jobs.wait(job.id)
        if done.status != "succeeded":
            raise SystemExit(f"the job is {done.status}: {done.error}")
        listed = client.jobs.get(job.id).replicas or []
        replicas = [client.jobs.get(one.job) for one in listed]
        trained = images * 2 * cycles * REPLICAS
        return trained / (max(_at(one.finished_at) for one in replicas) - min(_at(one.started_at) for one in replicas))


def _at(moment: str | None) -> float:
    assert moment is not None
    return datetime.fromisoformat(moment).timestamp()


def meetings(cycles: int, images: int, seeds: int) -> None:
    """Print what comes of replicas that are joined once, and of those that meet: means over seeds, on the held-out images."""
    print("method                     w̄ acc   w̄ loss  one replica  ensemble  spread before the meetings       seconds")
    with tempfile.TemporaryDirectory() as folder, running(workers=1, threads=1) as service:
        client = service.client
        checkpoint = client.checkpoints.create(write_start(Path(folder) / "start.safetensors"))
        dataset = client.datasets.create("builtin:digits", max_train_images=images)
        for name, options in WAYS.items():
            method = {"cycles": cycles, "high": {"lr": HIGH}, "low": {"lr": HIGH / 10}, "replicas": REPLICAS, **options}
            done = []
            for seed in range(seeds):
                job = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, method=method, seed=seed)
                assert job.id is not None
                done.append(client.jobs.wait(job.id))
            _print_way(name, done)


def _print_way(name: str, done: list[Job]) -> None:
    results = [one.result for one in done if one.result is not None]
    if len(results) < len(done):
        raise SystemExit(f"{name}: {next(one.error for one in done if one.result is None)}")
    seconds = mean(_at(one.finished_at) - _at(one.created_at) for one in done)
    rows = [one.metrics for one in results]
    alone = mean(one.replicas.accuracy for one in rows if one.replicas is not None)
    together = mean(one.ensemble.accuracy for one in rows if one.ensemble is not None)
    spread = " ".join(f"{one.spread:.2f}" for one in results[0].meetings or [])
    print(
        f"{name:26} {mean(one.averaged.accuracy for one in rows):.4f}  {mean(one.averaged.loss for one in rows):.4f}  "
        f"{alone:.4f}       {together:.4f}    {spread:32} {seconds:.0f}",
        flush=True,
    )


@dataclass
class Fleet:
    """Workers that wait instead of training. beats: seconds that each heartbeat took. ended: when each replica had."""

    store: Store
    sums: Path
    seconds: float
    beats: list[float] = field(default_factory=list)
    claimed: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    passed_on: list[str] = field(default_factory=list)

    def work(self, replica: str) -> None:
        """Be the worker of one replica, as `wbar_worker.run_job` is."""
        store = self.store
        chosen = store.queue.first_beside(replica)
        while chosen is None or (job := store.attempts.claim(chosen, LEASE_SECONDS, "fleet")) is None:
            chosen = store.queue.first_beside(replica)  # another worker was first
        began = time.monotonic()
        self.claimed.append(began)
        while (left := began + self.seconds - time.monotonic()) > 0:
            time.sleep(min(BEAT_SECONDS, left))
            asked = time.monotonic()
            done = min(1.0, (asked - began) / self.seconds)
            progress = Progress(phase="high", cycle=1, cycles=1, epoch=1, step=1, total_steps=2, fraction=done)
            store.attempts.heartbeat(job.claim, LEASE_SECONDS, progress, event=True)
            self.beats.append(time.monotonic() - asked)
        blob = store.blobs.put_file(self.sums)
        with store.blobs.keep(blob):
            files = ResultBlobs(blob.sha256, blob.sha256, None, files={"mean": blob.sha256})
            assert store.attempts.succeed(job.claim, _result(), files, None)
        waiting = store.queue.next_of_replicas(job.id)
        self.ended.append(time.monotonic())
        if waiting is not None:
            self.passed_on.append(waiting)


def fleet(workers: int, seconds: float) -> None:
    """Print what a fleet of workers costs beyond the waiting, and what joining as many sums costs."""
    model = initialized(Network("resnet20", 10))
    with tempfile.TemporaryDirectory() as folder, serving() as service:
        sums = exact_mean.write(Path(folder) / "mean.safetensors", Finished(mean_of(model), 1))
        store, spec = service.store, service.spec
        with store.database.write():
            replicas = [
                store.jobs.create(MINE, spec.model_copy(update={"seed": n, "keeps_mean": True}), None, {}).id
                for n in range(workers)
            ]
            whole = {"method": CyclicSwa(replicas=workers), "replicas": tuple(replicas)}
            joint = store.jobs.create(MINE, spec.model_copy(update=whole), None, {}).id
        crew = Fleet(store, sums, seconds)
        threads = [threading.Thread(target=crew.work, args=(replica,)) for replica in replicas]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.attempts.claim(joint, LEASE_SECONDS) is not None, "all replicas have ended"
        ready = time.monotonic()
        first = service.http.get(f"/v1/jobs/{joint}")
        shown = Job.model_validate_json(first.text).replicas or []
        assert [one.status for one in shown] == ["succeeded"] * workers
        asked = time.monotonic()
        joint_mean = empty_like(model)
        for _ in replicas:
            joint_mean.merge(exact_mean.read(sums, model))
        joined = time.monotonic()
    slowest = quantiles(crew.beats, n=100)[98]
    print(f"{workers} workers that wait {seconds:g} s, {sums_bytes(model)} bytes of sums each, SQLite, one process")
    print(f"all claimed after {max(crew.claimed) - began:.2f} s; all ended after {max(crew.ended) - began:.2f} s")
    print(f"heartbeat: median {1e3 * median(crew.beats):.1f} ms, 99th percentile {1e3 * slowest:.1f} ms")
    print(
        f"joining begins {1e3 * (ready - max(crew.ended)):.0f} ms after the last end; told of by {len(crew.passed_on)}"
    )
    print(
        f"joining {workers} sums: {joined - asked:.2f} s; the whole beside the waiting: {ready - began - seconds:.2f} s"
    )


def sums_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's sums in float64."""
    return sum(8 * one.numel() for one in model.state_dict().values())


def _result() -> JobResult:
    scores = Comparisons(start=SCORE, start_recomputed=SCORE, last=SCORE, averaged=SCORE, ensemble=SCORE)
    return JobResult(
        weights=WeightsFile(bytes=1, sha256="e" * 64),
        metrics=scores,
        curve=[],
        verdict="same",
        held_out=HeldOut(selection=0, report=10),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("scaling", "meetings", "fleet"), required=True)
    parser.add_argument("--workers", type=int, default=64, help="of the fleet")
    parser.add_argument("--seconds", type=float, default=30.0, help="that the fleet waits")
    parser.add_argument("--cycles", type=int, default=20, help="of scaling and meetings")
    parser.add_argument("--images", type=int, default=1000, help="training images of scaling and meetings")
    parser.add_argument("--seeds", type=int, default=3, help="of meetings")
    parser.add_argument("--repetitions", type=int, default=1, help="of scaling, one and two at a time in turn")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an exception, so that the service is stopped
    if asked.part == "fleet":
        fleet(asked.workers, asked.seconds)
    elif asked.part == "meetings":
        meetings(asked.cycles, asked.images, asked.seeds)
    else:
        scaling(asked.cycles, asked.images, asked.repetitions)


if __name__ == "__main__":
    main()
