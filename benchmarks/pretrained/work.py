"""The arms of one task and seed, in a process of its own: a module that a spawned process can import."""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gain.arms import Execution
from benchmarks.gain.tables import read
from benchmarks.pretrained.arms import Bench
from benchmarks.pretrained.images import task_of
from benchmarks.pretrained.network import register
from wbar_training.uploads import builtin_images

SLACK = 1.15  # an arm may take so many times what the longest before took


@dataclass(frozen=True)
class Work:
    """All arms of one task and seed, for one process. until: when no arm may be at work any more, of time.time()."""

    task: str
    seed: int
    options: argparse.Namespace
    until: float


def run_arms(work: Work) -> int:
    """Run every arm that the results file does not have yet; returns how many failed."""
    options, failures, longest = work.options, 0, 0.0
    torch.set_num_threads(options.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    if options.data is not None:
        builtin_images.FASHION_FOLDERS = (options.data, *builtin_images.FASHION_FOLDERS)
    register()
    own = {
        "task": work.task,
        "size": options.size,
        "device": options.device,
        "precision": options.precision,
        "images": options.counts.unseen,
        "batch_norm": options.batch_norm,
        "seed": work.seed,
    }
    done = {line["arm"] for line in read(options.results) if own.items() <= line.items()}
    missing = [arm for arm in options.arms if arm not in done]
    if not missing:
        return 0
    with tempfile.TemporaryDirectory(prefix="wbar-pretrained-") as folder:
        images = task_of(work.task, options.size, options.counts, work.seed)
        execution = Execution(options.device, options.precision)
        frozen = options.batch_norm == "frozen"
        bench = Bench(work.task, images, options.size, work.seed, options.epochs, frozen, Path(folder), execution)
        bench.prepare(options.weights)
        for arm in missing:
            if time.time() + SLACK * longest > work.until:
                say("not begun, for want of time", task=work.task, seed=work.seed, arm=arm)
                continue
            began = time.monotonic()
            try:
                found = list(bench.arm(arm))
            except Exception as error:  # one arm's failure ends no other
                failures += 1
                say(
                    "failed",
                    task=work.task,
                    seed=work.seed,
                    arm=arm,
                    error=f"{type(error).__name__}: {str(error)[:500]}",
                )
                continue
            longest = max(longest, time.monotonic() - began)
            for label, measured in found:
                line: dict[str, Any] = own | {"arm": label}
                line |= measured | {"seconds": round(time.monotonic() - began, 1)}
                with options.results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                say(f"{work.task}, seed {work.seed}, {label}", accuracy=line["accuracy"], loss=line["loss"])
    return failures


def say(name: str, **figures: Any) -> None:
    print(json.dumps({"name": name} | figures, ensure_ascii=False), flush=True)
