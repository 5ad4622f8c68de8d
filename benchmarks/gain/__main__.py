"""`python -m benchmarks.gain`: what averaging gives, on images that no job has seen, beside what it competes with.

Every finished arm is a line of the results file, and is not run again. The blocks and what was looked at when are in
`benchmarks.gain.blocks`.
"""

import argparse
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from benchmarks.gain.arms import ALL_ARMS
from benchmarks.gain.blocks import PARTS
from benchmarks.gain.runner import run_block
from benchmarks.gain.tables import read, tables


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gain", description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: training")
    parser.add_argument("--only", metavar="TEXT", help="blocks whose name has this in it")
    parser.add_argument("--seeds", type=int, help="instead of each block's own number")
    parser.add_argument("--arm", choices=ALL_ARMS, action="append", help="default: all")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--results", type=Path, default=Path("gain.jsonl"), help="one line per finished arm")
    parser.add_argument("--starts", type=Path, default=Path("gain-starts"), help="where the trained starts are kept")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    options = parser.parse_args()
    blocks = [block for part in options.part or ["training"] for block in PARTS[part]]
    blocks = [block for block in blocks if options.only is None or options.only in block.name]
    most = max((options.seeds or block.seeds for block in blocks), default=0)
    tasks = [(block, seed) for seed in range(most) for block in blocks if seed < (options.seeds or block.seeds)]
    options.starts.mkdir(parents=True, exist_ok=True)
    work = partial(run_block, arms=options.arm or list(ALL_ARMS), results=options.results, starts=options.starts)
    with ProcessPoolExecutor(options.processes, max_tasks_per_child=1) as pool:
        list(pool.map(work, tasks))
    lines = list(tables(read(options.results), blocks))
    print("\n".join(lines))
    if options.markdown:
        head = f"Python {platform.python_version()}, torch {torch.__version__}.\n\n"
        options.markdown.write_text(head + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
