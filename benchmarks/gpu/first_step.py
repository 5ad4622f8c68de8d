"""`python -m benchmarks.gpu.first_step`: submit → first training step on a warm worker with a GPU, through the real service."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.first_step import waits
from benchmarks.gpu.lines import done, say

GOAL = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.first_step", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--done", type=Path, help="a file of results: what it has is not measured again")
    options = parser.parse_args(arguments)
    repetitions = 1 if options.quick else 3
    if {f"first_step/{number}" for number in range(1, repetitions + 1)} <= done(options.done):
        return 0
    for number, wait in enumerate(waits(repetitions, options.device)):
        if number == 0:
            say("first_step/warm-up", **asdict(wait))  # the first job warms the worker up: no promise
            continue
        say(f"first_step/{number}", **asdict(wait), goal=GOAL, met=wait.progress <= GOAL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
