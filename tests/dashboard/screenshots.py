"""The pictures of docs/dashboard.md: every page, of a real service with a few real jobs.

python -m tests.dashboard.screenshots docs/screenshots
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.conftest import Broker, Service, fresh_database, wait_until
from tests.dashboard.browser import SECONDS, chromium, signed_in
from tests.material import write_archive
from wbar_training.demo.start import train_start


def main(out: Path) -> None:
    """Start a service, run four jobs, take the pictures, stop."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, fresh_database("sqlite", Path(folder)) as url:
        broker = Broker()
        broker.start()
        service = Service(Path(folder), url, broker)
        try:
            service.start()
            take(service, Path(folder), out)
        finally:
            service.stop()
            broker.kill()


def take(service: Service, folder: Path, out: Path) -> None:
    """Take the pictures."""
    with service.client() as client:
        start = train_start("builtin:digits", None, 30, 0, folder, lambda *_: None)  # the first of `make demo`
        checkpoint = client.checkpoints.create(start, name="resnet20-digits.safetensors").id
        dataset = client.datasets.create("builtin:digits").id
        archive = client.datasets.create(write_archive(folder), name="digits.zip").id
        common = {"checkpoint": checkpoint, "dataset": dataset, "metadata": {"team": "vision"}}
        jobs = [
            client.jobs.create(name="six cycles", method={"cycles": 6, "control": True}, **common).id,
            client.jobs.create(name="auto", method={"type": "auto", "control": True}, **common).id,
            client.jobs.create(name="twelve cycles", method={"cycles": 12}, **common).id,
        ]
        for job in jobs:
            client.jobs.wait(job, timeout=300)
        running = client.jobs.create(name="two hundred cycles", method={"cycles": 200}, **common).id
        client.jobs.create(name="waits", priority=5, **common)
        wait_until(lambda: client.jobs.snapshots(running), 60)
        averages = client.merges.create(jobs, name="mean of the three results")
        client.merges.wait(averages.id, timeout=60)
        asked = {
            "url": "https://hooks.example/wbar",
            "name": "the team's chat",
            "events": ["job.succeeded", "job.failed"],
        }
        hook = client.request("POST", "/v1/webhooks", json=asked).json()["id"]
        client.request("POST", f"/v1/webhooks/{hook}/ping")
    pages = {
        "jobs": "/",
        "job": f"/jobs/{jobs[0]}",
        "job-running": f"/jobs/{running}",
        "compare": "/compare?" + "&".join(f"job={job}" for job in jobs),
        "new-job": f"/jobs/new?checkpoint={checkpoint}&dataset={dataset}",
        "checkpoints": "/checkpoints",
        "datasets": "/datasets",
        "dataset": f"/datasets/{archive}",
        "merges": f"/merges?checkpoints={jobs[0]}",
        "workers": "/workers",
        "keys": "/keys",
        "webhooks": "/webhooks",
        "webhook": f"/webhooks/{hook}",
    }
    with chromium() as browser, signed_in(browser, service, viewport={"width": 1200, "height": 800}) as (page, _):
        for name, path in pages.items():
            _picture(page, path, out / f"{name}.png")
    with service.client() as client:
        client.jobs.cancel(running)


def _picture(page: Page, path: str, file: Path) -> None:
    page.goto(path)
    charts = page.locator(".chart[data-series=loss] canvas")
    if page.locator(".chart").count():
        expect(charts.first).to_be_visible(timeout=20 * SECONDS)
    page.wait_for_timeout(500)  # the charts are drawn a frame after their data came
    page.screenshot(path=file, full_page=page.locator(".chart").count() == 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
