"""The arguments of every part of `python -m benchmarks.gpu`, and the results of former calls."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """device: of torch. minutes: for this part. done: the results so far. out: a folder for files. quick: tiny sizes."""

    device: str
    minutes: float
    done: Path | None
    out: Path
    quick: bool

    def finished(self, part: str) -> list[dict[str, Any]]:
        """Return the lines that former calls have of a part."""
        return [line for line in read(self.done) if line["part"] == part] if self.done else []


def parsed(description: str | None) -> Options:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--done", type=Path, metavar="FILE", help="results of former calls, which are not made again")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs")
    return Options(**vars(parser.parse_args()))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a results file; a last line that was cut off is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
