"""What receiving a gigabyte costs: the API's processor time over one pass that reads, hashes and writes the same file.

The file's first bytes are no safetensors header, so that the service rejects it and keeps nothing; they differ for each
repetition, so that nothing is recognized. Wall time is shown beside `cp` and `sha256sum` one after the other, and beside
the one pass, which ends with fsync as the service's does. The three take turns in being first. Receiving contains all that
the pass does: a ratio below 1 says that the pass was disturbed, and is no result.
"""

import hashlib
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.running import Service, cpu_seconds, running, wait_until
from benchmarks.table import Findings, Row, Sample, figure
from benchmarks.transfer import SECONDS, run

GOAL = 1.5
GIB, MIB = 1024**3, 1024**2


@dataclass(frozen=True)
class Cost:
    seconds: float
    cpu_seconds: float


def measure(quick: bool) -> Findings:
    size, repetitions = (128 * MIB, 3) if quick else (GIB, 6)
    uploads, passes, tools = list[Cost](), list[Cost](), list[Cost]()
    with tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder, running() as service:
        path = random_file(Path(folder) / "random", size)
        send(service, random_file(Path(folder) / "small", MIB))  # whatever is loaded late is loaded now
        for repetition in range(repetitions):
            stamp(path, repetition)
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            turns: list[tuple[list[Cost], Callable[[], Cost]]] = [
                (tools, partial(_cp_and_sha256sum, path)),
                (passes, partial(_one_pass, path)),
                (uploads, partial(send, service, path, digest)),
            ]
            first = repetition % len(turns)
            for costs, turn in turns[first:] + turns[:first]:
                costs.append(turn())
    return _findings(size, uploads, passes, tools)


def random_file(path: Path, size: int) -> Path:
    if shutil.disk_usage(path.parent).free < 4 * size:
        raise RuntimeError(f"{path.parent} has no room for a file of {size:,} bytes and its copies: set TMPDIR")
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
    stamp(path, 0)
    return path


def stamp(path: Path, number: int) -> None:
    """Make the content new, and no safetensors file: eight bytes that announce an impossible header, then the number."""
    with open(path, "r+b") as file:
        file.write(b"\xff" * 8 + number.to_bytes(8, "little"))
        file.flush()
        os.fsync(file.fileno())


def send(service: Service, path: Path, digest: str | None = None) -> Cost:
    """Upload the file, check that it arrived, and wait until the service has thrown it away again."""
    address = urlsplit(service.url)
    api = service.api
    before = cpu_seconds(api)
    answer = run("send", str(address.hostname), str(address.port), str(path), api_key=service.api_key)
    cost = Cost(answer["seconds"], cpu_seconds(api) - before)
    if answer["bytes"] != path.stat().st_size or (digest is not None and answer["sha256"] != digest):
        raise RuntimeError(f"{path.stat().st_size} bytes with sha-256 {digest} were sent, the service says {answer}")
    wait_until(lambda: service.client.checkpoints.get(answer["id"]).status != "processing", 60, "the verdict")
    service.client.checkpoints.delete(answer["id"])
    return cost


def _one_pass(path: Path) -> Cost:
    copy = path.with_name("copy")
    found = run("floor", str(path), str(copy))
    copy.unlink()
    return Cost(found["seconds"], found["cpu_seconds"])


def _cp_and_sha256sum(path: Path) -> Cost:
    copy = path.with_name("copy")
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(["cp", "--reflink=never", str(path), str(copy)], check=True, timeout=SECONDS)
    subprocess.run(["sha256sum", str(path)], check=True, stdout=subprocess.DEVNULL, timeout=SECONDS)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    copy.unlink()
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds, used)


def _findings(size: int, uploads: list[Cost], passes: list[Cost], tools: list[Cost]) -> Findings:
    def cpu(costs: list[Cost]) -> Sample:
        return Sample([cost.cpu_seconds for cost in costs])

    def wall(costs: list[Cost]) -> Sample:
        return Sample([cost.seconds for cost in costs])

    what = f"upload of {size // MIB:,} MiB"
    ratio = cpu(uploads).median / cpu(passes).median
    rows = [
        Row(
            f"{what}: processor time of the API",
            str(cpu(uploads)),
            f"one pass of read + sha256 + write: {cpu(passes)}",
            f"{ratio:.2f}" if ratio >= 1 else f"{ratio:.2f}: no result, the pass was disturbed",
            f"≤ {GOAL}",
            ratio <= GOAL if ratio >= 1 else None,
        ),
        Row(
            f"{what}: wall time until the 201, synced",
            str(wall(uploads)),
            f"the one pass, synced: {wall(passes)}",
            f"{wall(uploads).median / wall(passes).median:.2f}",
        ),
        Row(
            f"{what}: wall time until the 201, synced",
            str(wall(uploads)),
            f"cp + sha256sum, not synced: {wall(tools)}",
            f"{wall(uploads).median / wall(tools).median:.2f}",
        ),
    ]
    rate = size / MIB / wall(uploads).median
    note = f"uploads arrive at {figure(rate)} MiB/s; cp + sha256sum use {cpu(tools)} of processor time"
    return Findings(rows, [note])
