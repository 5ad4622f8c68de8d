"""Killed by SIGKILL in the middle, and gone on in another process: the same bytes as a run that nothing disturbed."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu.conftest import CUBLAS
from tests.gpu.jobs import COMPILED
from wbar.catalog import ARCHITECTURES
from wbar_training import state_files

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(280)]

# Of every kind of layer one: plain and dense residuals, depthwise and grouped convolutions, attention, positions.
PRECISIONS = {
    "resnet20": "float16",
    "resnet18": "bfloat16",
    "wide_resnet28_10": "bfloat16",
    "cifar_vgg16_bn": "float32",
    "densenet121": "bfloat16",
    "mobilenet_v3_small": "float32",
    "efficientnet_b0": "bfloat16",
    "regnet_y_400mf": "float32",
    "convnext_tiny": "bfloat16",
    "swin_t": "float32",
    "vit_b_32": "bfloat16",
}
IN_COMPILED_STEPS = {"resnet20": "float32", "vit_b_32": "bfloat16"}
KILL_AT, PHASE_ENDS = 2, 4  # of eight steps; large networks save at the end of a phase only
SECONDS = 120


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)  # the states of large networks are gigabytes


def start(name: str, precision: str, device: str, folder: Path, *more: str) -> "subprocess.Popen[str]":
    """Start a process, which has nothing that another one has compiled."""
    folder.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != CUBLAS}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / f"compiled{len(list(folder.glob('compiled*')))}")
    words = [name, precision, device, str(folder), *more]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.gpu.job_process", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: "subprocess.Popen[str]") -> list[int]:
    """Wait for processes that run beside one another, and return how they ended."""
    try:
        errors = [process.communicate(timeout=SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    assert all(code in (0, -signal.SIGKILL) for code in codes), "\n".join(errors)[-3000:]
    return codes


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_killed_job_ends_in_the_same_bytes(device: str, folder: Path, name: str) -> None:
    assert ARCHITECTURES[name].reproducible
    check_killed(name, PRECISIONS[name], device, folder)


@pytest.mark.parametrize("name", IN_COMPILED_STEPS)
def test_a_killed_job_in_compiled_steps_ends_in_the_same_bytes(device: str, folder: Path, name: str) -> None:
    """Each process compiles by itself, as on another host."""
    check_killed(name + COMPILED, IN_COMPILED_STEPS[name], device, folder)


def check_killed(name: str, precision: str, device: str, folder: Path) -> None:
    words = (name, precision, device)
    killed, whole = start(*words, folder / "broken", str(KILL_AT)), start(*words, folder / "whole")
    assert finish(killed, whole) == [-signal.SIGKILL, 0]
    latest = state_files.latest(folder / "broken")
    assert latest is not None
    assert KILL_AT <= state_files.step_of(latest) <= PHASE_ENDS
    resumed, again = start(*words, folder / "broken"), start(*words, folder / "again")
    assert finish(resumed, again) == [0, 0]
    expected = (folder / "whole" / "weights").read_bytes()
    assert (folder / "again" / "weights").read_bytes() == expected, "two whole runs differ"
    assert (folder / "broken" / "weights").read_bytes() == expected, "the resumed run differs"
