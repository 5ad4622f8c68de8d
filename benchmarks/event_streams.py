"""A thousand event streams on one API process: what each holds in memory, and how soon it has an event."""

import asyncio
import json
import time
from statistics import median, quantiles

from benchmarks.running import cpu_seconds, memory
from benchmarks.serving import MINE, ApiOnly, serving
from benchmarks.table import Findings, Row, figure
from benchmarks.upload import MIB
from wbar.jobs import Progress
from wbar_store.claims import Claim

SECONDS = 1.0  # between two events of a job


def measure(quick: bool) -> Findings:
    streams, watched, rounds = (100, 10, 4) if quick else (1000, 100, 12)
    with serving() as service:
        jobs = []
        for _ in range(watched):
            job = service.store.jobs.create(MINE, service.spec, None, {}).id
            service.store.attempts.claim(job, 3600)
            jobs.append(job)
        return asyncio.run(_measure(service, jobs, streams, rounds))


async def _measure(service: ApiOnly, jobs: list[str], streams: int, rounds: int) -> Findings:
    before, delays = memory(service.pid, "VmRSS"), list[float]()
    readers = []
    for n in range(streams):
        readers.append(asyncio.create_task(_read(service, jobs[n % len(jobs)], delays)))
        if n % 50 == 49:
            await asyncio.sleep(0.05)
    await asyncio.sleep(2.0)
    held = memory(service.pid, "VmRSS") - before
    used, began = cpu_seconds(service.pid), time.perf_counter()
    for _ in range(rounds):
        start = time.perf_counter()
        await asyncio.to_thread(_tell, service, jobs)
        await asyncio.sleep(max(0.0, SECONDS - (time.perf_counter() - start)))
    share = (cpu_seconds(service.pid) - used) / (time.perf_counter() - began)
    for job in jobs:
        await asyncio.to_thread(service.store.jobs.cancel, MINE, job)
    await asyncio.wait_for(asyncio.gather(*readers), 60)
    expected = rounds * streams
    if len(delays) != expected:
        raise RuntimeError(f"{expected} events were told, and {len(delays)} came")
    late = quantiles(delays, n=100)[98]
    return Findings(
        [
            Row(
                f"memory of the API for {streams:,} open streams of {len(jobs)} jobs", f"{held / MIB:.1f} MiB",
                f"before {before / MIB:.1f} MiB", f"{held / streams / 1024:.1f} KiB a stream",
            ),
            Row(
                f"an event until its streams have it, p99 of {len(delays):,}", f"{figure(late)} s",
                f"median {figure(median(delays))} s, at most {figure(max(delays))} s; the poller looks every 0.25 s", "–",
            ),
            Row(
                f"processor of the API with {streams:,} streams and {len(jobs)} events a second",
                f"{100 * share:.0f} % of a core",
                f"{expected / rounds:,.0f} messages a second", "–",
            ),
        ]
    )  # fmt: skip


def _tell(service: ApiOnly, jobs: list[str]) -> None:
    for job in jobs:
        # The time is told as a loss: it comes back as it was.
        told = Progress(phase="high", cycle=1, cycles=1, epoch=1, step=1, total_steps=2, fraction=0.5, loss=time.time())
        service.store.attempts.heartbeat(Claim(job, 1), 3600, told, event=True)


async def _read(service: ApiOnly, job: str, delays: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    head = (
        f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.key}\r\n"
        "Accept: text/event-stream\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode())
    async for line in reader:
        if line.startswith(b"data:"):
            data = json.loads(line[5:])
            if data["type"] == "progress":
                delays.append(time.time() - data["data"]["loss"])
    writer.close()
