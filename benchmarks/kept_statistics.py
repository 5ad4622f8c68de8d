"""`python -m benchmarks.kept_statistics`: the rates that a plain fine-tune bears while BatchNorm keeps the start's statistics.

From settled starts, six more epochs along a cosine from each of several peak rates (given for a batch of 128) to 0, once with
the statistics of batches in training and once with the start's: the NLL on unseen images, or that training diverged. It is
what the default rates of `batch_norm: "frozen"` follow from.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

import torch

from benchmarks.gain.arms import Bench, Silent
from benchmarks.gain.blocks import Block
from wbar.catalog import ARCHITECTURES, BATCH
from wbar.errors import Diverged
from wbar.method import Plain
from wbar_training.loop import run

BLOCKS = (
    Block("digits", 400, "resnet20", "settled", 6),
    Block("fashion", 2000, "resnet20", "settled", 6),
    Block("fashion", 400, "resnet18", "settled", 6),
    Block("fashion", 400, "mobilenet_v2", "settled", 6),
)
START_EPOCHS = 18
RATES = (0.1, 0.05, 0.03, 0.015, 0.01, 0.005, 0.0025, 0.001)


def main() -> None:
    """Print a table for each start, line by line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kept_statistics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for block in BLOCKS:
        _table(block, options.seeds)


def _table(block: Block, seeds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="wbar-kept-") as folder:
        benches = [Bench(block, seed, Path(folder, str(seed))) for seed in _made(folder, seeds)]
        for bench in benches:
            bench.make_start(START_EPOCHS)
        peak = ARCHITECTURES[block.network].peak_lr
        start = _text([bench.start_score()["loss"] for bench in benches])
        print(f"\n{block.images} {block.size}, {block.network}: customary {peak:g}; NLL of the start {start}\n")
        print("| peak rate | statistics of batches | the start's |\n|---|---|---|")
        for rate in RATES:
            if rate <= peak:
                found = [_text([_loss(bench, rate, kind) for bench in benches]) for kind in ("track", "frozen")]
                print(f"| {rate:g} | {' | '.join(found)} |", flush=True)


def _made(folder: str, seeds: int) -> range:
    for seed in range(seeds):
        Path(folder, str(seed)).mkdir()
    return range(seeds)


def _loss(bench: Bench, rate: float, batch_norm: str) -> float | None:
    """Return the loss on unseen images, in nats; None: training diverged."""
    spec, workspace = bench.job({"type": "none", "epochs": bench.block.epochs}, bench.checkpoint, "arm")
    assert isinstance(spec.method, Plain)
    batch = spec.recipe.batch_size
    assert batch != "auto"
    method = spec.method.model_copy(update={"lr": rate * batch / BATCH, "back_off": False})
    recipe = spec.recipe.model_copy(update={"batch_norm": batch_norm})
    try:
        outcome = run(spec.model_copy(update={"method": method, "recipe": recipe}), workspace, Silent())
    except Diverged:
        return None
    return float(bench.score_of(outcome.weights)["loss"])


def _text(losses: list[float | None]) -> str:
    told = [loss for loss in losses if loss is not None]
    lost = f"{len(losses) - len(told)} of {len(losses)} diverged"
    if not told:
        return lost
    spread = f" ± {stdev(told):.3f}" if len(told) > 1 else ""
    return f"{mean(told):.3f}{spread}" + ("" if len(told) == len(losses) else f"; {lost}")


if __name__ == "__main__":
    main()
