"""One block and seed in a process of its own: what the results file does not have yet, a line for each finished arm."""

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gain.arms import Bench
from benchmarks.gain.blocks import START_EPOCHS, Block
from benchmarks.gain.networks import register
from benchmarks.gain.tables import read


def run_block(task: tuple[Block, int], arms: list[str], results: Path, starts: Path) -> None:
    """Run every arm of one block and seed that the results file does not have yet."""
    block, seed = task
    torch.set_num_threads(1)  # several processes of one thread each get more done than one of several
    register()
    done = {line["arm"] for line in read(results) if (line["block"], line["seed"]) == (block.name, seed)}
    missing = [arm for arm in arms if arm not in done]
    if not missing and "start" in done:
        return
    with tempfile.TemporaryDirectory(prefix="wbar-gain-") as folder:
        here = Bench(block, seed, Path(folder))

        def note(arm: str, found: dict[str, Any], began: float) -> None:
            line = {"block": block.name, "seed": seed, "arm": arm} | found
            line["seconds"] = round(time.monotonic() - began, 1)
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{block.name}, seed {seed}, {arm}: {found['accuracy']:.4f} {found['loss']:.4f}", flush=True)

        kept = starts / f"{block.images}-{block.size}-{block.network}-{block.start}-{seed}.safetensors"
        began = time.monotonic()
        if kept.exists():
            shutil.copy(kept, here.checkpoint)
        else:
            here.make_start(START_EPOCHS[block.size])
            shutil.copy(here.checkpoint, kept)
        if "start" not in done:
            note("start", here.start_score(), began)
        for arm in missing:
            began = time.monotonic()
            for label, found in here.arm(arm):
                note(label, found, began)
