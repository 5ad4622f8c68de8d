"""`python -m benchmarks.averaging`: one table per section, each the averaging library beside its peers and limits.

A missed goal is shown, never an error; only a broken measure is one, and it keeps no other from being measured.
"""

import argparse
import platform
import sys
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.averaging.alternate import in_a_new_process
from benchmarks.table import Findings, Row, markdown, show

# Loaded when their turn comes: what one section needs, another does not wait for.
SECTIONS = {
    "running-mean": ("running_mean", "Running means of weights"),
    "pull": ("pull", "The pull toward the mean"),
    "batch-norm": ("batch_norm", "BatchNorm statistics"),
    "soup": ("soup", "Means of checkpoint files"),
    "swag-flatness": ("swag_flatness", "SWAG and flatness"),
}

console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.averaging", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer runs: to see that everything works")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too, as Markdown")
    parser.add_argument("--only", choices=sorted(SECTIONS), action="append", help="this section; may be given again")
    options = parser.parse_args()
    texts, whole = list[str](), True
    for name in options.only or SECTIONS:
        console.print(f"measuring {name} …")
        module, title = SECTIONS[name]
        began = time.perf_counter()
        findings, complete = _measured(name, module, options.quick)
        whole &= complete
        title = f"{title} ({_machine(options.quick)}; took {time.perf_counter() - began:.0f} s)"
        show(console, title, findings)
        texts.append(markdown(f"## {title}", findings))
        if options.markdown:
            # After every section: what was found by then is worth having when the rest is ended early.
            options.markdown.write_text("\n".join(texts))
    return 0 if whole else 1


def _measured(name: str, module: str, quick: bool) -> tuple[Findings, bool]:
    """What the section found, and whether it could be measured."""
    path = f"benchmarks.averaging.{module}"
    if find_spec(path) is None:
        return Findings([Row(name, "not there", "–", "–")]), True
    try:
        return in_a_new_process(path, quick), True
    except Exception as error:
        traceback.print_exc()
        return Findings([Row(name, "not measured", "–", f"{type(error).__name__}: {error}"[:300])]), False


def _machine(quick: bool) -> str:
    trial = "quick trial; " if quick else ""
    return f"{trial}Python {platform.python_version()}, torch {torch.__version__}; median, range"


if __name__ == "__main__":
    sys.exit(main())
