"""The tests of tests/gpu, a line for each as it ends; those that passed before are left out."""

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.lines import read

WORKERS = 6  # of pytest-xdist, where it is there: most of a test is starting processes
ALONE = "alone"  # in the names of tests that measure the whole card


class Lines:
    """A plugin that writes each test's outcome, and of a failure the end of what it said."""

    def __init__(self, out: int) -> None:
        self._out = os.fdopen(out, "w", buffering=1)
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] = self._seconds.get(report.nodeid, 0.0) + report.duration
        if report.when != "call" and report.outcome == "passed":
            return
        line: dict[str, Any] = {"name": report.nodeid, "outcome": report.outcome}
        line["seconds"] = round(self._seconds[report.nodeid], 2)
        if report.outcome == "skipped":
            line["why"] = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)[:300]
        elif report.outcome == "failed":
            line["why"] = str(report.longrepr)[-3000:]
        self._out.write(json.dumps(line) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.tests", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="nothing here is smaller")
    parser.add_argument("--done", type=Path, help="a file of results: what passed there is not run again")
    parser.add_argument("--only", metavar="EXPRESSION", help="tests whose names match, as pytest's -k has it")
    options = parser.parse_args()
    passed = {line["name"] for line in read(options.done) if line.get("outcome") == "passed"}
    out = Lines(os.dup(1))
    os.dup2(2, 1)  # pytest's own words go to the log
    arguments = ["tests/gpu", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "--tb=short"]
    arguments += [f"--deselect={name}" for name in sorted(passed)]
    together = f"not {ALONE}" + (f" and ({options.only})" if options.only else "")
    apart = ALONE + (f" and ({options.only})" if options.only else "")
    beside = ["-n", str(WORKERS)] if find_spec("xdist") is not None else []
    if options.device != "cuda":
        os.environ["WBAR_GPU_TESTS_DEVICE"] = options.device
    statuses = [
        pytest.main([*arguments, "-k", together, *beside], plugins=[out]),
        pytest.main([*arguments, "-k", apart], plugins=[out]),
    ]
    good = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    return 0 if all(status in good for status in statuses) else 1


if __name__ == "__main__":
    sys.exit(main())
