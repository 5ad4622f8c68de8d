"""`python -m benchmarks.kept_statistics`: the rates that a plain fine-tune bears while BatchNorm keeps the start's statistics.

From settled starts, six more epochs along a cosine from each of several peak rates (given for a batch of 128) to 0, once with
the statistics of batches in training and once with the start's: the NLL on unseen images, and how many were lost: diverged, or
with a loss of more than twice the start's. It is what the default rates of `batch_norm: "frozen"` follow from.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

import torch

from benchmarks.gain.arms import Bench, Silent
from benchmarks.gain.blocks import START_EPOCHS, Block
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
LOST = 2.0  # times the start's loss
RATES = (0.1, 0.05, 0.025, 0.01, 0.005, 0.0025)


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
        own = [Path(folder, str(seed)) for seed in range(seeds)]
        for one in own:
            one.mkdir()
        benches = [Bench(block, seed, one) for seed, one in enumerate(own)]
        for bench in benches:
            bench.make_start(START_EPOCHS[block.size])
        starts = [float(bench.start_score()["loss"]) for bench in benches]
        peak = ARCHITECTURES[block.network].peak_lr
        print(f"\n{block.name}: customary {peak:g}, NLL of the start {_text(list(starts), starts)}\n")
        print("| peak rate | statistics of batches | the start's |\n|---|---|---|")
        for rate in [rate for rate in RATES if rate <= peak]:
            cells = [_text([_loss(bench, rate, kind) for bench in benches], starts) for kind in ("track", "frozen")]
            print(f"| {rate:g} | {' | '.join(cells)} |", flush=True)


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


def _text(losses: list[float | None], starts: list[float]) -> str:
    """Return the mean of the losses that are left, and how many are lost."""
    left = [loss for loss, start in zip(losses, starts, strict=True) if loss is not None and loss <= LOST * start]
    lost = len(losses) - len(left)
    if not left:
        return f"all {lost} lost"
    spread = f" ± {stdev(left):.3f}" if len(left) > 1 else ""
    return f"{mean(left):.3f}{spread}" + (f"; {lost} of {len(losses)} lost" if lost else "")


if __name__ == "__main__":
    main()
