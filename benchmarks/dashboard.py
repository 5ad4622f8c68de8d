"""The dashboard: how soon a list of ten thousand jobs is painted, what a page weighs, how fluid charts of a hundred thousand
points are, what two hundred open pages cost.
"""

import asyncio
import random
import shutil
import time
from statistics import median
from typing import TYPE_CHECKING

import httpx

from benchmarks.job_table import fill
from benchmarks.running import cpu_seconds, memory
from benchmarks.serving import MINE, ApiOnly, serving
from benchmarks.table import Findings, Row, figure
from benchmarks.upload import MIB
from wbar.jobs import Progress
from wbar_service.sessions import COOKIE
from wbar_store.claims import Claim

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import BrowserContext

PAINT_GOAL, WEIGHT_GOAL, CPU_GOAL, MEMORY_GOAL = 0.3, 200_000, 0.25, 50 * MIB
LIVE_SECONDS = 3.0  # between two looks of a list in which jobs run, as the page's script does it


def measure(quick: bool) -> Findings:
    jobs, pages, seconds, paints = (1000, 40, 10.0, 3) if quick else (10_000, 200, 60.0, 15)
    with serving() as service:
        fill(service, jobs)
        record = service.store.keys.valid(service.key)
        assert record is not None
        token = service.store.sessions.begin(record).token
        rows = _shown(service, token, jobs, paints, quick)
        rows += asyncio.run(_open(service, token, pages, seconds))
    return Findings(rows)


def _shown(service: ApiOnly, token: str, jobs: int, times: int, quick: bool) -> list[Row]:
    from playwright.sync_api import sync_playwright

    from benchmarks.dashboard_charts import measure_charts

    chromium = shutil.which("chromium")
    if chromium is None:
        return [Row("first paint of the list of jobs, charts", "not measured", "Chromium is not installed", "–")]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        def opened() -> "BrowserContext":
            """Return a fresh browser of a reader who has signed in: nothing is kept from the time before."""
            url = f"http://127.0.0.1:{service.port}"
            context = browser.new_context(base_url=url, viewport={"width": 1200, "height": 1000})
            context.add_cookies([{"name": COOKIE, "value": token, "url": url}])
            return context

        rows = _painted(opened, jobs, times) + measure_charts(service, opened, quick)
        browser.close()
    return rows


def _painted(opened: "Callable[[], BrowserContext]", jobs: int, times: int) -> list[Row]:
    found, weight = list[float](), 0
    for _ in range(times):
        context = opened()
        page = context.new_page()
        page.goto("/", wait_until="load")
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
        found.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000)
        sizes = "performance.getEntries().reduce((sum, one) => sum + (one.encodedBodySize || 0), 0)"
        weight = page.evaluate(sizes)
        context.close()
    paint = median(found)
    return [
        Row(
            f"first paint of the list of {jobs:,} jobs, median of {times} fresh browsers", f"{figure(1000 * paint)} ms",
            f"{figure(1000 * min(found))}–{figure(1000 * max(found))} ms", "–", f"≤ {1000 * PAINT_GOAL:g} ms",
            paint <= PAINT_GOAL,
        ),
        Row(
            "weight of that page: document, style, scripts", f"{weight / 1000:.0f} kB", "not compressed", "–",
            f"≤ {WEIGHT_GOAL / 1000:g} kB", weight <= WEIGHT_GOAL,
        ),
    ]  # fmt: skip


async def _open(service: ApiOnly, token: str, pages: int, seconds: float) -> list[Row]:
    """Half of the pages show the list, in which a job runs; half show that job, and follow its events."""
    job = await asyncio.to_thread(service.store.jobs.create, MINE, service.spec, "runs", {})
    await asyncio.to_thread(service.store.attempts.claim, job.id, 3600)
    before = memory(service.pid, "VmRSS")
    cookies = {COOKIE: token}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=pages)
    base = f"http://127.0.0.1:{service.port}"
    async with httpx.AsyncClient(base_url=base, cookies=cookies, limits=limits, timeout=60) as http:
        readers = [asyncio.create_task(_list(http)) for _ in range(pages // 2)]
        readers += [asyncio.create_task(_follow(http, job.id)) for _ in range(pages - pages // 2)]
        await asyncio.sleep(LIVE_SECONDS + 1)  # all of them are there
        used, began = cpu_seconds(service.pid), time.perf_counter()
        while time.perf_counter() - began < seconds:
            told = Progress(phase="high", cycle=1, cycles=1, epoch=1, step=1, total_steps=2, fraction=0.5)
            await asyncio.to_thread(service.store.attempts.heartbeat, Claim(job.id, 1), 3600, told, True)
            await asyncio.sleep(1.0)
        share = (cpu_seconds(service.pid) - used) / (time.perf_counter() - began)
        held = memory(service.pid, "VmRSS") - before
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    return [
        Row(
            f"processor of the API with {pages} open pages (half lists, half a running job)", f"{100 * share:.0f} % of a core",
            f"a list looks every {LIVE_SECONDS:g} s", "–", f"≤ {100 * CPU_GOAL:g} %", share <= CPU_GOAL,
        ),
        Row(
            "memory of the API for them", f"{held / MIB:.0f} MiB", f"before {before / MIB:.0f} MiB", "–",
            f"≤ {MEMORY_GOAL / MIB:g} MiB", held <= MEMORY_GOAL,
        ),
    ]  # fmt: skip


async def _list(http: httpx.AsyncClient) -> None:
    await asyncio.sleep(random.random() * LIVE_SECONDS)
    while True:
        (await http.get("/", headers={"HX-Request": "true"})).raise_for_status()
        await asyncio.sleep(LIVE_SECONDS * (0.9 + 0.2 * random.random()))


async def _follow(http: httpx.AsyncClient, job: str) -> None:
    (await http.get(f"/jobs/{job}")).raise_for_status()
    async with http.stream("GET", f"/v1/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as answer:
        async for _ in answer.aiter_lines():
            pass
