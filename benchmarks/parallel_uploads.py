"""Fifty uploads of a hundred megabytes at once: the memory of the API stays flat, and every one arrives."""

import os
import tempfile
import threading
from pathlib import Path

from benchmarks.api_memory import Watch
from benchmarks.running import memory, wait_until
from benchmarks.serving import serving
from benchmarks.table import Findings, Row
from benchmarks.transfer import send
from benchmarks.upload import MIB, random_file

GOAL = 128 * MIB


def measure(quick: bool) -> Findings:
    count, size = (8, 16 * MIB) if quick else (50, 100 * MIB)
    with tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder, serving() as service:
        path = random_file(Path(folder) / "random", size)
        os.environ["WBAR_API_KEY"] = service.key
        try:
            answers = list[object]()
            send("127.0.0.1", str(service.port), str(random_file(Path(folder) / "small", MIB)))
            before = memory(service.pid, "VmRSS")
            clients = [
                threading.Thread(
                    target=lambda: answers.append(send("127.0.0.1", str(service.port), str(path))), daemon=True
                )
                for _ in range(count)
            ]
            with Watch(service.pid) as watch:
                for client in clients:
                    client.start()
                wait_until(lambda: not any(client.is_alive() for client in clients), 600, "the uploads")
        finally:
            del os.environ["WBAR_API_KEY"]
    if len(answers) != count:
        raise RuntimeError(f"{count} files were sent, and {len(answers)} arrived")
    growth = max(watch.seen) - before
    row = Row(
        f"memory of the API while {count} uploads of {size // MIB} MiB arrive at once", f"grows by {growth / MIB:.1f} MiB",
        f"before {before / MIB:.1f} MiB, peak {max(watch.seen) / MIB:.1f}", f"{max(watch.seen) / before:.2f}",
        f"< {GOAL // MIB} MiB growth", growth < GOAL,
    )  # fmt: skip
    return Findings([row])
