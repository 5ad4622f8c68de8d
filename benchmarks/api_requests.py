"""What the API still holds after ten thousand requests of all kinds, the absurd ones among them."""

import random
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import httpx

from benchmarks.running import Service, memory, running, wait_until
from benchmarks.start import write_start
from benchmarks.table import Findings, Row
from benchmarks.upload import MIB

GOAL = 100 * MIB
CLIENTS = 8
Ask = Callable[[httpx.Client, random.Random], httpx.Response]


def measure(quick: bool) -> Findings:
    requests = 800 if quick else 10_000
    with tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder, running() as service:
        kinds = _kinds(service, Path(folder))
        before = memory(service.api, "VmRSS")
        done = list[int]()
        clients = [
            threading.Thread(target=_ask, args=(service, kinds, requests // CLIENTS, seed, done), daemon=True)
            for seed in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        wait_until(lambda: not any(client.is_alive() for client in clients), 600, "the requests")
        if sum(done) != requests:
            raise RuntimeError(f"{requests} requests were sent, and {sum(done)} answered")
        after, peak = memory(service.api, "VmRSS"), memory(service.api, "VmHWM")
    row = Row(
        f"memory of the API after {requests:,} mixed requests, {CLIENTS} at a time",
        f"{(after - before) / MIB:.1f} MiB more than before",
        f"before {before / MIB:.1f} MiB, peak {peak / MIB:.1f}, after {after / MIB:.1f}",
        f"{after / before:.2f}",
        f"≤ {GOAL // MIB} MiB more",
        after - before <= GOAL,
    )
    return Findings([row])


def _kinds(service: Service, folder: Path) -> list[Ask]:
    """One of each: pages, downloads, dry runs, and bodies that are wrong in ways that take memory."""
    checkpoint = service.client.checkpoints.create(write_start(folder / "start.safetensors")).id
    dataset = service.client.datasets.create("builtin:digits").id
    job = service.submit(checkpoint=checkpoint, dataset=dataset, method={"type": "cyclic_swa", "cycles": 1})
    service.client.jobs.wait(job)
    least = {"checkpoint": checkpoint, "dataset": dataset, "dry_run": True}
    as_json = {"Content-Type": "application/json"}
    pages = ["/healthz", "/readyz", "/openapi.json", "/docs", "/v1/jobs?limit=100", "/v1/architectures"]
    parts = ["", "/events?limit=100", "/metrics", "/snapshots", "/weights", "/report"]
    paths = [*pages, *(f"/v1/jobs/{job}{part}" for part in parts)]

    def wrong(http: httpx.Client, draw: random.Random) -> httpx.Response:
        return http.post("/v1/jobs", json={**least, "classes": list(range(draw.randrange(100_000)))})

    def unknown(http: httpx.Client, draw: random.Random) -> httpx.Response:
        return http.post("/v1/jobs", json={f"unknown{n}": n for n in range(draw.randrange(50_000))})

    return [
        *((lambda http, _draw, path=path: http.get(path)) for path in paths),
        lambda http, draw: http.get(f"/v1/jobs/job_{draw.random()}"),
        lambda http, _draw: http.post("/v1/jobs", json=least),
        wrong,
        unknown,
        lambda http, draw: http.post("/v1/datasets", content=b"[" * draw.randrange(30_000), headers=as_json),
        lambda http, _draw: http.post("/v1/jobs", content=b" " * 2_000_000, headers=as_json),
        lambda http, draw: http.post("/v1/checkpoints", files={"other": draw.randbytes(draw.randrange(500_000))}),
    ]


def _ask(service: Service, kinds: list[Ask], requests: int, seed: int, done: list[int]) -> None:
    draw, answered = random.Random(seed), 0
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False) as http:
        for _ in range(requests):
            answered += draw.choice(kinds)(http, draw).status_code < 500
    done.append(answered)
