"""The API starts without torch: until it is loaded, until it answers, and the whole command, beside `import fastapi`."""

import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass

from benchmarks.running import ROOT
from benchmarks.serving import serving
from benchmarks.table import Findings, Row, Sample

GOAL = 1.0
SECONDS = 120.0
LOADED = "import os, wbar_service.app; os._exit(0)"  # without the interpreter's end, which no start waits for


@dataclass(frozen=True)
class Cost:
    seconds: float
    cpu_seconds: float


def measure(quick: bool) -> Findings:
    repetitions = 3 if quick else 7
    _python(
        "import sys, wbar_service.app; assert 'torch' not in sys.modules, 'the API loads torch'"
    )  # and writes byte code
    _python("import fastapi")
    loaded, whole, theirs, started = list[Cost](), list[Cost](), list[Cost](), list[float]()
    for _ in range(repetitions):
        loaded.append(_python(LOADED))
        whole.append(_python("import wbar_service.app"))
        theirs.append(_python("import fastapi"))
        with serving() as api:
            started.append(api.start_seconds)
    peer = Sample([cost.seconds for cost in theirs])
    rows = [
        _row("import wbar_service.app in a new interpreter; torch is not loaded", _seconds(loaded), peer, GOAL),
        _row("python -m wbar_service, until its first answer (/healthz)", Sample(started), peer, GOAL),
        _row("python -c 'import wbar_service.app', to the end of the interpreter", _seconds(whole), peer),
    ]
    used = Sample([cost.cpu_seconds for cost in loaded])
    return Findings(rows, [f"import wbar_service.app uses {used} of processor time, which a busy machine changes less"])


def _seconds(costs: list[Cost]) -> Sample:
    return Sample([cost.seconds for cost in costs])


def _row(what: str, found: Sample, peer: Sample, goal: float | None = None) -> Row:
    ratio = f"{found.median / peer.median:.2f}"
    if goal is None:
        return Row(what, str(found), f"import fastapi: {peer}", ratio)
    return Row(what, str(found), f"import fastapi: {peer}", ratio, f"≤ {goal:g} s", found.median <= goal)


def _python(code: str) -> Cost:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=ROOT, env=environment, check=True, timeout=SECONDS)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
