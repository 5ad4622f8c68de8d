"""Uploads from a page: what was recognized is chosen at once; a pause, a reload and a killed API cost nothing that arrived."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, Route, expect

from tests.conftest import Service
from tests.dashboard.browser import SECONDS, chromium, needs_chromium, signed_in
from tests.material import write_archive, write_start

pytestmark = needs_chromium
MIB = 1024 * 1024
READ = 60 * SECONDS


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def choose(page: Page, kind: str, file: Path) -> None:
    page.locator(f"[data-upload={kind}] input[type=file]").set_input_files(file)


def slowly(route: Route) -> None:
    """Hold each part up: on loopback a whole file takes less time than a click."""
    if route.request.method == "PATCH":
        time.sleep(0.3)
    route.continue_()


def sent(page: Page) -> list[int]:
    """The offsets of the parts that the page sends from now on."""
    offsets: list[int] = []

    def note(request: Request) -> None:
        if request.method == "PATCH":
            offsets.append(int(request.headers["upload-offset"]))

    page.on("request", note)
    return offsets


def test_files_become_a_job_without_leaving_the_page(browser: Browser, service: Service, tmp_path: Path) -> None:
    with signed_in(browser, service) as (page, _):
        page.goto("/jobs/new")
        choose(page, "checkpoint", write_start(tmp_path))
        expect(page.locator("[data-upload=checkpoint] [role=status]")).to_contain_text(
            "resnet20, 10 classes", timeout=READ
        )
        choose(page, "dataset", write_archive(tmp_path))
        expect(page.locator("[data-upload=dataset] [role=status]")).to_contain_text("120 training", timeout=READ)
        assert page.get_by_label("Checkpoint", exact=True).input_value().startswith("ckpt_")
        expect(page.locator("#preview")).to_contain_text("Steps", timeout=READ)
        page.get_by_role("button", name="Start the job").click()
        expect(page.locator("#state h1")).to_be_visible()
        job = page.url.rsplit("/", 1)[1]
    with service.client() as client:
        client.jobs.cancel(job)


@pytest.mark.long
def test_a_pause_and_a_reload_cost_nothing_that_arrived(browser: Browser, service: Service, tmp_path: Path) -> None:
    file = tmp_path / "large.safetensors"
    file.write_bytes(b"\xff" + os.urandom(40 * MIB - 1))  # which no pickle begins with
    with signed_in(browser, service) as (page, watched):
        page.route("**/v1/uploads/*", slowly)
        page.goto("/checkpoints")
        status, pause = page.locator("[data-upload] [role=status]"), page.get_by_role("button", name="Pause")
        choose(page, "checkpoint", file)
        expect(status).to_contain_text("of 40.0 MiB")
        pause.click()
        expect(page.get_by_role("button", name="Resume")).to_be_visible()
        watched.allowed = ("net::ERR_ABORTED",)
        page.on("dialog", lambda asked: asked.accept())  # whether to leave, while a file is on its way
        page.reload()
        offsets = sent(page)
        choose(page, "checkpoint", file)
        # Random bytes are no checkpoint, which the page says once all of them have arrived.
        expect(status).to_contain_text("safetensors", timeout=READ)
        assert offsets[-1] + 8 * MIB >= 40 * MIB
        assert len(set(offsets)) <= 5


@pytest.mark.long
def test_an_api_that_is_killed_is_waited_for(browser: Browser, breakable: Service, tmp_path: Path) -> None:
    service = breakable
    service.start()
    file = tmp_path / "large.safetensors"
    file.write_bytes(b"\xff" + os.urandom(40 * MIB - 1))  # which no pickle begins with
    with signed_in(browser, service) as (page, watched):
        page.route("**/v1/uploads/*", slowly)
        page.goto("/checkpoints")
        status = page.locator("[data-upload] [role=status]")
        choose(page, "checkpoint", file)
        expect(status).to_contain_text("of 40.0 MiB")
        watched.allowed = ("net::", "status of 5", "503", "409")
        service.signal("api", signal.SIGKILL)
        service.start("api")  # the part that was on its way is sent again, by the browser or by the page
        expect(status).to_contain_text("safetensors", timeout=READ)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
