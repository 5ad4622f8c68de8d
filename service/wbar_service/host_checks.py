"""What `wbar doctor` finds of the host itself: Python, the libraries' versions, torch and its devices, disks, the clock.

torch is asked in a process of its own: the service never loads it.
"""

import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from wbar import __version__
from wbar_service.settings import GIB
from wbar_store.database import Database

Verdict = Literal["ok", "warning", "fault"]
LITTLE_SPACE = 5 * GIB
MOST_DRIFT = 2.0  # seconds between this host's clock and the database's
TORCH_SECONDS = 120.0  # a cold disk takes its time
_NAMED = ("torch", "torchvision", "fastapi", "celery", "sqlalchemy")
_NEEDED = ("service", "store")  # extras; what the others ask for is checked where it is installed
_EXTRAS = (*_NEEDED, "average", "worker", "embedded")
_ASK_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads(),
    "devices": [[device.name, device.total_memory] for device in devices],
}))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report. verdict: `fault` where the service cannot work like that; fix: what to do about it."""

    part: str
    verdict: Verdict
    words: str
    fix: str | None = None


def software() -> Iterator[Finding]:
    """Yield the versions of wbar, Python and the main libraries, and whether all are what this wbar asks for."""
    installed = ", ".join(f"{name} {_version(name) or 'not installed'}" for name in _NAMED)
    yield Finding("software", "ok", f"wbar {__version__}, Python {platform.python_version()}, {installed}")
    wrong = [*_unfit()]
    if wrong:
        fix = f"pip install {' '.join(repr(str(asked)) for asked, _ in wrong)}"
        yield Finding("versions", "fault", ", ".join(f"{asked.name} {found}" for asked, found in wrong), fix)
    else:
        yield Finding("versions", "ok", "as this wbar asks for")


def _unfit() -> Iterator[tuple[Requirement, str]]:
    """Yield what wbar's own metadata asks for and is not there, or is of another version."""
    try:
        asked = [Requirement(text) for text in requires("wbar") or []]
    except PackageNotFoundError:
        return
    for requirement in asked:
        marker, requirement.marker, requirement.extras = requirement.marker, None, set()
        extras = [extra for extra in _EXTRAS if marker is None or marker.evaluate({"extra": extra})]
        found = _version(requirement.name)
        if found is None and (marker is None or set(extras) & set(_NEEDED)):
            yield requirement, "is not installed"
        elif found is not None and extras and not requirement.specifier.contains(found, prereleases=True):
            yield requirement, found


def torch_and_devices() -> Finding:
    """Return what this host would train on, as a process with torch sees it."""
    if _version("torch") is None:
        return Finding("devices", "ok", "no torch here: this host serves, and trains nothing")
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _ASK_TORCH], capture_output=True, text=True, timeout=TORCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "devices", "fault", f"torch did not load within {TORCH_SECONDS:g} s", "look at the disk and memory"
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding(
            "devices", "fault", f"torch does not load: {reason[:200]}", "pip install --force-reinstall torch"
        )
    found = json.loads(done.stdout.splitlines()[-1])
    if found["devices"]:
        words = ", ".join(f"{name} ({memory / GIB:.0f} GiB)" for name, memory in found["devices"])
        return Finding("devices", "ok", f"{words}, CUDA {found['cuda']}")
    words = f"the CPU, {found['threads']} threads"
    if Path("/dev/nvidiactl").exists():
        kind = "is built without CUDA" if found["cuda"] is None else f"for CUDA {found['cuda']} does not see it"
        fix = "install torch as pytorch.org says for this driver (`nvidia-smi` names its CUDA version)"
        return Finding("devices", "warning", f"{words}; there is an NVIDIA GPU, and torch {kind}", fix)
    return Finding("devices", "ok", words)


def disk(part: str, folder: Path) -> Finding:
    """Return how much room is left where a folder is, or will be."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    words = f"{folder}: {free / GIB:.1f} GiB are free"
    if free > LITTLE_SPACE:
        return Finding(part, "ok", words)
    return Finding(part, "warning", words, "make room: `wbar gc`, `expires_after` on what you send, or another disk")


def clock(database: Database) -> Finding:
    """Return how far this host's clock is from the database's, which decides about leases."""
    before = time.time()
    there = database.seconds_now()
    drift = (before + time.time()) / 2 - there
    words = f"{abs(drift):.1f} s {'ahead of' if drift > 0 else 'behind'} the database's"
    if abs(drift) <= MOST_DRIFT:
        return Finding("clock", "ok", "with the database's")
    return Finding(
        "clock", "warning", words, "let chrony or systemd-timesyncd set the clocks: expiries, keys and S3 need them"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
