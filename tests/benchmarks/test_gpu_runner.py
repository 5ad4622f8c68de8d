"""The parts of the GPU benchmark are processes with a time each; what has finished is not run again."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import COMPLETE, Part, _run
from benchmarks.gpu.lines import read

ROOT = Path(__file__).parents[2]


def run(out: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--out", str(out), *words],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_a_part_that_is_complete_is_not_run_again(tmp_path: Path) -> None:
    assert "bandwidth: 0 results" not in run(tmp_path, "--only", "bandwidth")
    lines = read(tmp_path / "results.jsonl")
    assert lines[-1] == {"part": COMPLETE, "name": "bandwidth"}
    assert len(lines) > 2
    assert "bandwidth: complete" in run(tmp_path, "--only", "bandwidth")
    assert len(read(tmp_path / "results.jsonl")) <= len(lines) + 1  # the machine may be noted again
    assert (tmp_path / "page.md").stat().st_size > 0


@pytest.mark.long
def test_a_part_is_not_begun_in_too_little_time(tmp_path: Path) -> None:
    assert "bandwidth: not begun" in run(tmp_path, "--only", "bandwidth", "--minutes", "0.2")


@pytest.mark.long
def test_a_part_that_overruns_is_ended_and_not_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(device="cpu", quick=True, out=tmp_path)
    results = tmp_path / "results.jsonl"
    results.touch()
    assert _run(Part("speed", 240, 0), 6.0, options, results)
    assert "ended there" in capsys.readouterr().out
    assert not [line for line in read(results) if line.get("part") == COMPLETE]
