"""`python -m benchmarks.gpu --minutes 9 --out DIR`: what only a GPU can show, in parts, each a process of its own.

Every finished result is a line of DIR/results.jsonl as soon as it is known, and is not made again by a later call; a part
that overruns its time is ended and keeps what it has. DIR/page.md is written at the end of every call.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.lines import read
from benchmarks.gpu.page import GAIN_PAGE, write_page

RESERVE = 10.0  # seconds kept for the page
GAIN = Path(__file__).parents[2] / "docs" / "plots" / Path(GAIN_PAGE).with_suffix(".jsonl")
COMPLETE = "complete"  # the `part` of the lines that name the parts which are done


@dataclass(frozen=True)
class Part:
    """One part.

    name: of the module, and of the lines' `part`.
    seconds: the most it may take.
    least: with less time left it is not begun.
    arguments: with {minutes}, {results} (so far) and {out} (the folder) put in.
    """

    name: str
    seconds: float
    least: float
    arguments: tuple[str, ...] = ("--done", "{results}")


PARTS = (
    Part("tests", 240, 40),
    Part("bandwidth", 60, 20, ()),
    Part("speed", 240, 40),
    Part("trace", 60, 25, ("--out", "{out}")),
    Part("first_step", 60, 30, ()),
    Part("gain", 3600, 45, ("--minutes", "{minutes}", "--results", f"{{out}}/{GAIN.name}", "--starts", "{out}/starts")),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything; a rerun goes on where this stopped")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results.jsonl, page.md, traces, logs")
    parser.add_argument("--only", choices=[part.name for part in PARTS], action="append", help="may be given again")
    parser.add_argument("--device", default="cuda", help="cpu: to see that the parts run, with --quick")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, whose numbers mean nothing")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes - RESERVE
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    results.touch()
    _note_machine(results)
    if not options.quick and not (options.out / GAIN.name).exists():
        shutil.copyfile(GAIN, options.out / GAIN.name)  # arms that have run are not run again
    whole = True
    for part in PARTS:
        left = deadline - time.monotonic()
        if options.only and part.name not in options.only:
            continue
        if any(line.get("part") == COMPLETE and line["name"] == part.name for line in read(results)):
            print(f"{part.name}: complete", flush=True)
            continue
        if left < part.least:
            print(f"{part.name}: not begun, {left:.0f} s are left", flush=True)
            continue
        whole &= _run(part, min(part.seconds, left), options, results)
    write_page(results, options.out / "page.md")
    print((options.out / "page.md").read_text())
    return 0 if whole else 1


def _run(part: Part, seconds: float, options: argparse.Namespace, results: Path) -> bool:
    """Run a part within its time and keep its lines as they come; False if it broke."""
    began = time.monotonic()
    print(f"{part.name}: {seconds:.0f} s at most …", flush=True)
    values = {"minutes": f"{(seconds - 5) / 60:.3f}", "results": str(results), "out": str(options.out)}
    command = [sys.executable, "-P", "-u", "-m", f"benchmarks.gpu.{part.name}", "--device", options.device]
    command += [argument.format(**values) for argument in part.arguments] + (["--quick"] if options.quick else [])
    with open(options.out / f"{part.name}.log", "ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
        timer = threading.Timer(seconds, lambda: os.killpg(process.pid, signal.SIGTERM))
        killer = threading.Timer(seconds + 8, lambda: os.killpg(process.pid, signal.SIGKILL))
        timer.start()
        killer.start()
        try:
            count = sum(_keep(part.name, line, results) for line in process.stdout or ())
            status = process.wait()
        finally:
            timer.cancel()
            killer.cancel()
            _end(process)
            if process.stdout:
                process.stdout.close()
    took = time.monotonic() - began
    over = took >= seconds
    print(
        f"{part.name}: {count} results in {took:.0f} s{', ended there' if over else f', exit status {status}'}",
        flush=True,
    )
    if status and not over:
        print("\n".join((options.out / f"{part.name}.log").read_text(errors="replace").splitlines()[-15:]), flush=True)
    if status == 0 and not over:
        _add(results, {"part": COMPLETE, "name": part.name})
    return status == 0 or over


def _keep(part: str, text: str, results: Path) -> bool:
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if not isinstance(line, dict) or "name" not in line:
        print(f"  {text.rstrip()[:300]}", flush=True)
        return False
    _add(results, {"part": part, **line})
    return True


def _add(results: Path, line: dict[str, Any]) -> None:
    with open(results, "a") as file:
        file.write(json.dumps(line) + "\n")


def _end(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what the part left behind


def _note_machine(results: Path) -> None:
    import torch

    found: dict[str, Any] = {"part": "machine", "name": "machine", "torch": str(torch.__version__)}
    found |= {"python": sys.version.split()[0], "processors": os.cpu_count()}
    if torch.cuda.is_available():
        found |= {"device": torch.cuda.get_device_name(0), "cuda": torch.version.cuda}
    _add(results, found)


if __name__ == "__main__":
    sys.exit(main())
