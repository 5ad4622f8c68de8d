"""The API starts without torch: `import wbar_service.app` in a fresh interpreter, over `import fastapi` in another."""

import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass

from benchmarks.running import ROOT
from benchmarks.table import Findings, Row, Sample

GOAL = 1.0
SECONDS = 120.0


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
    ours, theirs = list[Cost](), list[Cost]()
    for _ in range(repetitions):
        ours.append(_python("import wbar_service.app"))
        theirs.append(_python("import fastapi"))
    found, peer = Sample([cost.seconds for cost in ours]), Sample([cost.seconds for cost in theirs])
    row = Row(
        "python -c 'import wbar_service.app', the whole command; torch is not loaded",
        str(found),
        f"import fastapi: {peer}",
        f"{found.median / peer.median:.2f}",
        f"≤ {GOAL:g} s",
        found.median <= GOAL,
    )
    used = Sample([cost.cpu_seconds for cost in ours])
    return Findings(
        [row], [f"import wbar_service.app uses {used} of processor time, which a busy machine changes less"]
    )


def _python(code: str) -> Cost:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=ROOT, env=environment, check=True, timeout=SECONDS)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
