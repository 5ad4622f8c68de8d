"""The whole way by keyboard alone: no mouse, and no focus that was not walked to."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import Service, wait_until
from tests.dashboard.browser import SECONDS, Watched, chromium, needs_chromium
from tests.dashboard.keyboard import Keyboard
from tests.material import write_archive, write_start

pytestmark = [needs_chromium, pytest.mark.long]
ENDED = 120 * SECONDS


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def test_from_signing_in_to_the_file_by_keyboard_alone(browser: Browser, service: Service, tmp_path: Path) -> None:
    with service.client() as client:
        checkpoint = client.checkpoints.create(write_start(tmp_path)).id
        dataset = client.datasets.create(write_archive(tmp_path)).id
    watched = Watched(browser.new_context(base_url=service.url, locale="en-GB"))
    page = watched.context.new_page()
    keys = Keyboard(page)
    page.goto("/")

    expect(page.get_by_label("API key")).to_be_focused()
    keys.write(service.key)
    keys.press("Enter")
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    keys.skip()
    keys.go_to(page.get_by_role("main").get_by_role("link", name="New job").first)
    assert keys.stops == 1, "it is the first thing behind the head"
    keys.press("Enter")

    expect(page.get_by_role("heading", name="New job")).to_be_visible()
    keys.skip()
    for label, value in (("Checkpoint", checkpoint), ("Dataset", dataset), ("Method", "cyclic_swa")):
        keys.go_to(page.get_by_label(label, exact=True))
        keys.choose(value)
    for label, text in (("How long: cycles", "200"), ("Name", "keys alone")):
        field = page.get_by_label(label, exact=True)
        while not field.is_visible():  # folded: open what it is in
            keys.go_to(page.locator("details:not([open]) > summary").first)
            keys.press("Enter")
        keys.go_to(field)
        keys.write(text)
    expect(page.locator("#preview")).to_contain_text("200 snapshots")
    keys.go_to(page.get_by_role("button", name="Start the job"))
    keys.press("Enter")

    expect(page.get_by_role("heading", name="keys alone")).to_be_visible()
    finish = page.get_by_role("button", name="Finish now")
    expect(finish).to_be_enabled(timeout=ENDED)
    expect(page.locator("#state details tbody tr").nth(9)).to_be_visible(timeout=ENDED)
    keys.go_to(finish)
    keys.press("Enter")
    expect(page.locator(".verdict-line")).to_contain_text("ended early", timeout=ENDED)
    keys.go_to(page.get_by_role("link", name="averaged weights"))
    with page.expect_download() as download:
        keys.press("Enter")
    download.value.save_as(tmp_path / "averaged.safetensors")
    assert (tmp_path / "averaged.safetensors").stat().st_size > 1000

    chart = page.locator(".chart[data-series=loss]")
    drawn = "one => one.querySelector('canvas').toDataURL()"
    keys.go_to(chart)
    page.wait_for_load_state("networkidle")
    whole = chart.evaluate(drawn)
    keys.press("+")
    wait_until(lambda: chart.evaluate(drawn) != whole, 10, "a zoom")
    zoomed = chart.evaluate(drawn)
    keys.press("ArrowLeft")
    wait_until(lambda: chart.evaluate(drawn) not in (whole, zoomed), 10, "a move")
    keys.press("Home")
    wait_until(lambda: chart.evaluate(drawn) == whole, 10, "the whole run")
    watched.check()
    watched.context.close()


def test_a_job_is_ticked_and_cancelled_by_keyboard_alone(browser: Browser, service: Service, tmp_path: Path) -> None:
    with service.client() as client:
        checkpoint = client.checkpoints.create(write_start(tmp_path)).id
        dataset = client.datasets.create(write_archive(tmp_path)).id
        job = client.jobs.create(checkpoint=checkpoint, dataset=dataset, method={"cycles": 200}, name="ticked by keys")
        wait_until(lambda: client.jobs.get(job.id).status == "running", 60)
    watched = Watched(browser.new_context(base_url=service.url, locale="en-GB"))
    page = watched.context.new_page()
    keys = Keyboard(page)
    page.goto("/sign-in")
    keys.write(service.key)
    keys.press("Enter")
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    keys.skip()
    keys.go_to(page.get_by_label("Tick ticked by keys"))
    keys.press("Space")
    keys.go_to(page.get_by_role("button", name="Cancel…"))
    keys.press("Enter")
    expect(page.get_by_role("heading", name="Cancel 1 job?")).to_be_visible()
    keys.skip()
    keys.go_to(page.get_by_role("button", name="Yes, cancel it"))
    keys.press("Enter")
    expect(page.get_by_role("row", name="ticked by keys")).to_contain_text("cancelled")
    with service.client() as client:
        assert client.jobs.get(job.id).status == "cancelled"
    watched.check()
    watched.context.close()
