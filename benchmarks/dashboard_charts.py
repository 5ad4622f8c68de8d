"""Charts of a hundred thousand points in a real browser: first draw, a zoom, a switch of the smoothing, frames while panning.

A job of the service records about a thousand points; these series are written as rows, so that the page, the API and the
charts are the ones that a reader has. Times end with the frame after the one in which the charts were drawn.
"""

import math
from collections.abc import Callable
from statistics import median

from playwright.sync_api import BrowserContext, Page
from sqlalchemy import insert

from benchmarks.serving import MINE, ApiOnly
from benchmarks.table import Row, figure
from wbar.jobs import MetricsPoint
from wbar_store.tables import metrics

FIRST_GOAL, STEP_GOAL, FRAME_GOAL = 0.3, 0.1, 1 / 30
CYCLE = 500  # points of a high and a low phase
FRAMES, OPENED = 90, 5

# Notes when the data have come and when the last chart is there; runs before the page's own scripts.
WATCH = """
window.firstDraw = new Promise((done) => addEventListener("DOMContentLoaded", () => {
  const wanted = document.querySelectorAll(".chart[data-series]").length;
  new MutationObserver((_, self) => {
    if (document.querySelectorAll(".u-wrap").length < wanted) return;
    self.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => {
      const came = performance.getEntriesByType("resource").filter((one) => one.name.includes("/metrics"));
      done({ whole: performance.now(), drawn: performance.now() - Math.max(...came.map((one) => one.responseEnd)) });
    }));
  }).observe(document.body, { childList: true, subtree: true });
}));
"""
FRAME = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
SMOOTH = f"""async () => {{
  const began = performance.now();
  document.getElementById("smooth").click();
  await {FRAME};
  return performance.now() - began;
}}"""
LET_GO = f"""() => {{ window.zoomed = new Promise((done) => addEventListener("mouseup", async () => {{
  const began = performance.now();
  await {FRAME};
  done(performance.now() - began);
}}, {{ capture: true, once: true }})); }}"""
DRAWN = "document.querySelector('.chart canvas').toDataURL()"
PAN = """async (frames) => {
  const place = document.querySelector(".chart[data-series]"), found = [];
  const key = (name) => place.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
  key("Home"); key("+"); key("+");
  await new Promise(requestAnimationFrame);
  let before = await new Promise(requestAnimationFrame);
  for (let i = 0; i < frames; i++) {
    key(Math.floor(i / 4) % 2 ? "ArrowRight" : "ArrowLeft");
    const now = await new Promise(requestAnimationFrame);
    found.push(now - before);
    before = now;
  }
  return found;
}"""


def fill(service: ApiOnly, points: int) -> str:
    """Insert an ended job with a series of so many points, and return its id."""
    job = service.store.jobs.create(MINE, service.spec, f"{points:,} points", {}).id
    service.store.jobs.cancel(MINE, job)
    rows = [{"job": job, "step": point.step, "point": point.model_dump()} for point in map(_point, range(points))]
    with service.store.database.write() as connection:
        connection.execute(insert(metrics), rows)
    return job


def _point(step: int) -> MetricsPoint:
    noise = math.sin(step * 12.9898) * 43758.5453 % 1
    high = step % CYCLE < CYCLE * 0.8
    return MetricsPoint(
        step=step, epoch=step // CYCLE, cycle=step // CYCLE + 1, phase="high" if high else "low", lr=0.1 if high else 0.01,
        loss=0.2 + noise * (0.4 if high else 0.1), pull_loss=0.0, grad_norm=1 + noise,
        distance_to_mean=5 * math.sin(math.pi * (step % CYCLE) / CYCLE) + noise, images_per_second=1000.0,
    )  # fmt: skip


def measure_charts(service: ApiOnly, opened: Callable[[], BrowserContext], quick: bool) -> list[Row]:
    """One job with very many points, and twelve jobs that have as many together."""
    points, times = (20_000, 3) if quick else (100_000, 9)
    single = f"/jobs/{fill(service, points)}"
    twelve = "/compare?" + "&".join(f"job={fill(service, points // 12)}" for _ in range(12))
    rows = []
    for path, what in ((single, f"{points:,} points of one job"), (twelve, f"12 jobs of {points // 12:,} points each")):
        firsts, wholes = list[float](), list[float]()
        for _ in range(OPENED):
            context = opened()
            page = context.new_page()
            page.add_init_script(WATCH)
            page.goto(path)
            found = page.evaluate("window.firstDraw")
            firsts.append(found["drawn"])
            wholes.append(found["whole"])
            if len(firsts) < OPENED:
                context.close()
        page.wait_for_load_state("networkidle")
        smooths = [page.evaluate(SMOOTH) for _ in range(times)]
        zooms = [_zoom(page) for _ in range(times)]
        frames = page.evaluate(PAN, FRAMES)
        context.close()
        rows += [
            _row(
                f"{what}: charts drawn after the series have come",
                firsts,
                FIRST_GOAL,
                f"since the page was opened: {figure(median(wholes))} ms",
            ),
            _row(f"{what}: a zoom", zooms, STEP_GOAL, "all charts of the page"),
            _row(f"{what}: a switch of the smoothing", smooths, STEP_GOAL, "all charts of the page"),
            _row(
                f"{what}: a frame while panning", frames, FRAME_GOAL, f"longest of {FRAMES}: {figure(max(frames))} ms"
            ),
        ]
    return rows


def _zoom(page: Page) -> float:
    """Drag over the middle of the first chart, and return the milliseconds from letting go to the frame."""
    page.locator("#unzoom").click()
    over = page.locator(".u-over").first
    over.scroll_into_view_if_needed()
    box, before = over.bounding_box(), page.evaluate(DRAWN)
    assert box is not None
    for share, button in ((0.2, page.mouse.down), (0.8, lambda: page.evaluate(LET_GO))):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        button()
    page.mouse.up()
    took = float(page.evaluate("window.zoomed"))
    assert page.evaluate(DRAWN) != before, "the chart shows other steps"
    return took


def _row(what: str, found: list[float], goal: float, beside: str) -> Row:
    middle = median(found)
    return Row(
        f"{what}, median of {len(found)}",
        f"{figure(middle)} ms",
        beside,
        "–",
        f"≤ {1000 * goal:.0f} ms",
        middle <= 1000 * goal,
    )
