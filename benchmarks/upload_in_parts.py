"""What the Python client takes to send a large file in parts over loopback, until the service has made a checkpoint of it.

Both sides read the whole file's sha256, which neither can leave to the other: the client names what it sends by it, and the
service verifies it. So the peer is `sha256sum` twice and one synced copy, one after the other.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.running import Service, running, wait_until
from benchmarks.table import Findings, Row, Sample, figure
from benchmarks.transfer import SECONDS
from benchmarks.upload import MIB, random_file, stamp


def measure(quick: bool) -> Findings:
    size, repetitions = (96 * MIB, 2) if quick else (330 * MIB, 7)
    sent, peer = list[float](), list[float]()
    with running() as service, tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder:
        path = random_file(Path(folder) / "random", size)
        for number in range(1 + repetitions):  # the first loads what is loaded late
            stamp(path, number)
            sent.append(_send(service, path))
            peer.append(_copied_and_hashed(path))
    ours, theirs = Sample(sent[1:]), Sample(peer[1:])
    row = Row(
        f"{size // MIB} MiB sent in parts by the Python client, until the 201",
        str(ours),
        f"sha256sum twice and one synced copy: {theirs}",
        f"{ours.median / theirs.median:.2f}",
    )
    return Findings([row], [f"the client sends in parts at {figure(size / MIB / ours.median)} MiB/s"])


def _send(service: Service, path: Path) -> float:
    began = time.perf_counter()
    made = service.client.checkpoints.create(path, wait=False)
    seconds = time.perf_counter() - began
    wait_until(lambda: service.client.checkpoints.get(made.id).status != "processing", 60, "the verdict")
    service.client.checkpoints.delete(made.id)
    return seconds


def _copied_and_hashed(path: Path) -> float:
    copy = path.with_name("copy")
    began = time.perf_counter()
    for _ in range(2):
        subprocess.run(["sha256sum", str(path)], check=True, stdout=subprocess.DEVNULL, timeout=SECONDS)
    subprocess.run(["cp", "--reflink=never", str(path), str(copy)], check=True, timeout=SECONDS)
    with open(copy, "rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    copy.unlink()
    return seconds
