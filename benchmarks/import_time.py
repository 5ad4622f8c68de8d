"""The API starts without torch: `import service.app` in a fresh interpreter, over `import fastapi` in another."""

import subprocess
import sys
import time

from benchmarks.running import ROOT
from benchmarks.table import Findings, Row, Sample

GOAL = 1.0
SECONDS = 120.0


def measure(quick: bool) -> Findings:
    repetitions = 3 if quick else 7
    _python("import sys, service.app; assert 'torch' not in sys.modules, 'the API loads torch'")  # and writes byte code
    _python("import fastapi")
    ours, theirs = [], []
    for _ in range(repetitions):
        ours.append(_python("import service.app"))
        theirs.append(_python("import fastapi"))
    found, peer = Sample(ours), Sample(theirs)
    row = Row(
        "python -c 'import service.app', the whole command; torch is not loaded",
        str(found),
        f"import fastapi: {peer}",
        f"{found.median / peer.median:.2f}",
        f"≤ {GOAL:g} s",
        found.median <= GOAL,
    )
    return Findings([row])


def _python(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=SECONDS)
    return time.perf_counter() - began
