"""`python -m benchmarks`: every measure, one table. A missed goal is shown, never an error; only a broken measure is one."""

import argparse
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console

from benchmarks import (
    api_memory,
    api_requests,
    api_speed,
    dashboard,
    event_streams,
    first_step,
    import_time,
    job_table,
    parallel_uploads,
    recognition,
    training_speed,
    upload,
    upload_in_parts,
)
from benchmarks.running import THREADS, machine_seconds
from benchmarks.table import Findings, Row, markdown, show

MEASURES: dict[str, Callable[[bool], Findings]] = {
    "import": import_time.measure,
    "memory": api_memory.measure,
    "requests": api_speed.measure,
    "held": api_requests.measure,
    "upload": upload.measure,
    "parts": upload_in_parts.measure,
    "uploads": parallel_uploads.measure,
    "jobs": job_table.measure,
    "recognition": recognition.measure,
    "streams": event_streams.measure,
    "dashboard": dashboard.measure,
    "first-step": first_step.measure,
    "training": training_speed.measure,
}

console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer runs: to see that everything works")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too, as Markdown")
    parser.add_argument("--only", choices=sorted(MEASURES), action="append", help="this measure; may be given again")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)  # an exception, so that whatever was started is stopped
    chosen = {name: measure for name, measure in MEASURES.items() if not options.only or name in options.only}
    findings, others, whole = Findings(), dict[str, float](), True
    try:
        for name, measure in chosen.items():
            whole &= _add(findings, others, name, measure, options.quick)
    finally:
        # Also when it is ended early: what was found by then is worth having.
        busy = ", ".join(f"{name} {value:.2f}" for name, value in others.items())
        findings.notes.append(f"processors busy with other things just before each measure (of {THREADS}): {busy}")
        title = _title(options.quick)
        show(console, title, findings)
        if options.markdown:
            options.markdown.write_text(markdown(title, findings))
    return 0 if whole else 1


def _add(
    findings: Findings, others: dict[str, float], name: str, measure: Callable[[bool], Findings], quick: bool
) -> bool:
    """Measure; False if it broke, which is a row of its own and does not keep the others from being measured."""
    others[name] = _busy()
    console.print(f"measuring {name} …")
    began = time.perf_counter()
    try:
        found, whole = measure(quick), True
    except Exception as error:
        traceback.print_exc()
        found, whole = Findings([Row(name, "not measured", "–", f"{type(error).__name__}: {error}"[:300])]), False
    findings.rows += found.rows
    findings.notes += found.notes
    console.print(f"  took {time.perf_counter() - began:.0f} s")
    return whole


def _busy() -> float:
    """Processors in use while this program does nothing: a noisy machine says so."""
    before, began = machine_seconds(), time.perf_counter()
    time.sleep(1)
    return (machine_seconds() - before) / (time.perf_counter() - began)


def _title(quick: bool) -> str:
    trial = "quick trial; " if quick else ""
    return (
        f"wbar against peers and limits ({trial}{THREADS} CPUs, Python {platform.python_version()}, "
        f"torch {torch.__version__}; median, range)"
    )


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
