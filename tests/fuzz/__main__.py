"""`python -m tests.fuzz --inputs 10000 --seed 0`: the readers against hostile uploads; ends with 1 if one was met badly."""

import argparse
import sys
from typing import TextIO

from tests.fuzz.runner import run, table


def print_line(text: str, where: TextIO) -> None:
    where.write(f"{text}\n")
    where.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description="Hostile uploads against the readers.")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    report = run(options.inputs, options.seed, lambda done: print_line(f"{done} inputs", sys.stderr))
    print_line(table(report), sys.stdout)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
