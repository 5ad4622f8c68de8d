"""The dashboard in a real Chromium, on a real service: by mouse and keyboard, over reloads, in two tabs, read aloud."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from tests.conftest import Service, wait_until
from tests.dashboard.browser import SECONDS, chromium, needs_chromium, signed_in
from tests.material import write_archive, write_start

pytestmark = needs_chromium
ENDED = 120 * SECONDS


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def inputs(service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A checkpoint and a dataset that are ready."""
    folder = tmp_path_factory.mktemp("inputs")
    with service.client() as client:
        return client.checkpoints.create(write_start(folder)).id, client.datasets.create(write_archive(folder)).id


def running_job(service: Service, inputs: tuple[str, str], cycles: int = 200, name: str = "in a browser") -> str:
    with service.client() as client:
        job = client.jobs.create(checkpoint=inputs[0], dataset=inputs[1], method={"cycles": cycles}, name=name)
        wait_until(lambda: client.jobs.get(job.id).status == "running", 60)
        return str(job.id)


def cancel(service: Service, job: str) -> None:
    with service.client() as client:
        client.jobs.cancel(job)


def check_accessible(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    serious = [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in serious for node in one["nodes"]]
    assert serious == [], serious


def test_the_fields_of_a_method_do_not_wait_for_a_slow_preview(
    browser: Browser, service: Service, inputs: tuple[str, str]
) -> None:
    checkpoint, dataset = inputs
    with signed_in(browser, service) as (page, _):
        page.get_by_role("link", name="New job").first.click()
        held = list[Route]()
        page.route("**/jobs/new/preview", lambda route: held.append(route))  # a function that can be marked
        with page.expect_request("**/jobs/new/preview"):
            page.get_by_label("Checkpoint").select_option(checkpoint)
            page.get_by_label("Dataset").select_option(dataset)
        page.get_by_label("Method", exact=True).select_option("cyclic_swa")
        page.get_by_label("How long: cycles", exact=True).fill("3")
        for one in held:
            one.continue_()
        page.unroute("**/jobs/new/preview")
        page.get_by_label("How long: cycles", exact=True).fill("4")
        expect(page.locator("#preview")).to_contain_text("4 snapshots")


def test_what_is_filled_in_before_the_script_has_come_is_shown_too(
    browser: Browser, service: Service, inputs: tuple[str, str]
) -> None:
    checkpoint, dataset = inputs
    with signed_in(browser, service) as (page, _):
        held = list[Route]()
        page.route("**/wbar.js*", lambda route: held.append(route))  # a function that can be marked
        with page.expect_request("**/wbar.js*"):
            page.goto(f"{service.url}/jobs/new", wait_until="commit")
        page.get_by_label("Checkpoint").select_option(checkpoint)
        page.get_by_label("Dataset").select_option(dataset)
        page.get_by_label("Method", exact=True).select_option("swa")
        for one in held:
            one.continue_()
        expect(page.locator("#preview")).to_contain_text("snapshots")
        expect(page.locator("#method-fields")).to_contain_text("epochs")
        expect(page.get_by_label("Method", exact=True)).to_have_value("swa")


def test_a_job_from_the_form_to_its_result(
    browser: Browser, service: Service, inputs: tuple[str, str], tmp_path: Path
) -> None:
    checkpoint, dataset = inputs
    with signed_in(browser, service) as (page, _):
        page.get_by_role("link", name="New job").first.click()
        page.get_by_label("Checkpoint").select_option(checkpoint)
        page.get_by_label("Dataset").select_option(dataset)
        page.get_by_label("Method", exact=True).select_option("cyclic_swa")
        cycles = page.get_by_label("How long: cycles", exact=True)
        cycles.fill("many")
        expect(page.locator("[data-path='method.cycles'] .field-fault")).to_contain_text("integer")
        cycles.fill("3")
        expect(page.locator("#preview")).to_contain_text("3 snapshots")
        expect(page.locator("#preview svg polyline")).to_be_visible()
        page.get_by_label("Name", exact=True).fill("three cycles")
        page.get_by_role("button", name="Start the job").click()
        expect(page.get_by_role("heading", name="three cycles")).to_be_visible()
        expect(page.locator(".verdict-line")).to_be_visible(timeout=ENDED)
        expect(page.locator(".u-wrap").first).to_be_visible()
        with page.expect_download() as download:
            page.get_by_role("link", name="averaged weights").click()
        download.value.save_as(tmp_path / "averaged.safetensors")
        assert (tmp_path / "averaged.safetensors").stat().st_size > 1000
        page.get_by_role("link", name="Jobs", exact=True).click()
        expect(page.get_by_role("row", name="three cycles")).to_contain_text("succeeded")


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_read_aloud_and_fits_a_phone(
    browser: Browser, service: Service, inputs: tuple[str, str], scheme: str
) -> None:
    with service.client() as client:
        job = client.jobs.create(checkpoint=inputs[0], dataset=inputs[1], method={"cycles": 2, "control": True})
        client.jobs.wait(job.id, timeout=120)
        other = client.jobs.clone(job.id, seed=1)
        client.jobs.wait(other.id, timeout=120)
        paired = client.request("GET", f"/v1/jobs/{job.id}/losses").json()
        assert sum(paired["averaged"]) / len(paired["averaged"]) == pytest.approx(
            client.jobs.get(job.id).result.metrics.averaged.loss, abs=1e-6
        )
        hook = client.request(
            "POST", "/v1/webhooks", json={"url": "https://hooks.example/wbar", "events": ["job.paused"]}
        )
        hook_page = f"/webhooks/{hook.json()['id']}"
        merge = client.merges.wait(client.merges.create([job.id, other.id]).id, timeout=60)
        common = {"checkpoint": inputs[0], "dataset": inputs[1], "method": {"cycles": 1}}
        study = client.studies.wait(client.studies.create(common, batch_sizes=[20, 60]).id, timeout=120)
        client.request("POST", f"/v1{hook_page}/rotate")
        assert client.request("GET", f"/v1/datasets/{inputs[1]}/samples").content.startswith(b"\x89PNG")
    pages = (
        "/", f"/jobs/{job.id}", f"/compare?job={job.id}&job={other.id}", f"/jobs/new?clone={job.id}", "/checkpoints",
        f"/checkpoints/{inputs[0]}", "/datasets", f"/datasets/{inputs[1]}", "/workers", "/keys", "/webhooks", hook_page,
        "/merges", f"/merges/{merge.id}", "/studies", f"/studies/{study.id}",
        f"/jobs/confirm?action=delete&job={job.id}",
    )  # fmt: skip
    with signed_in(browser, service, color_scheme=scheme, viewport={"width": 360, "height": 740}) as (page, _):
        for path in pages:
            page.goto(path)
            page.wait_for_load_state("networkidle")
            check_accessible(page)
            if path.startswith("/compare"):
                expect(page.get_by_text("paired image by image")).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, f"{path} is wider than a phone"
        page.set_viewport_size({"width": 1280, "height": 800})
        page.goto("/")
        assert page.locator(".wide").evaluate("box => box.scrollWidth <= box.clientWidth"), "the table is cut off"


@pytest.mark.long
def test_the_list_by_keyboard_alone(browser: Browser, service: Service, inputs: tuple[str, str]) -> None:
    job = running_job(service, inputs, name="by keyboard")
    with signed_in(browser, service) as (page, _):
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        page.get_by_label("Tick by keyboard").focus()
        page.keyboard.press("Space")
        page.get_by_role("button", name="Cancel…").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Cancel 1 job?")).to_be_visible()
        page.get_by_role("button", name="Yes, cancel it").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("row", name="by keyboard")).to_contain_text("cancelled")
    with service.client() as client:
        assert client.jobs.get(job).status == "cancelled"


@pytest.mark.long
def test_a_page_survives_reloads_and_a_restart_of_the_api(browser: Browser, breakable: Service, tmp_path: Path) -> None:
    service = breakable
    service.start()
    with service.client() as client:
        found = client.checkpoints.create(write_start(tmp_path)).id, client.datasets.create(write_archive(tmp_path)).id
    job = running_job(service, found)
    with signed_in(browser, service) as (page, watched):
        page.goto(f"/jobs/{job}")
        expect(page.locator("#progress-text")).to_contain_text("step", timeout=ENDED)
        page.reload()
        text = page.locator("#progress-text").inner_text()
        expect(page.locator("#progress-text")).not_to_have_text(text, timeout=ENDED)
        second = page.context.new_page()
        second.goto("/")
        expect(second.get_by_role("row", name="in a browser")).to_contain_text("running")
        idle = page.context.new_page()
        idle.goto("/keys")
        watched.allowed = ("ERR_", "net::", "status of 5", "503", "htmx:afterRequest", "htmx:timeout")
        service.signal("api", signal.SIGKILL)
        expect(page.locator("#connection")).to_contain_text("does not answer")
        second.bring_to_front()  # a browser may call a page hidden that another one lies over, and hidden pages ask for nothing
        expect(second.locator("#connection")).to_contain_text("does not answer", timeout=30 * SECONDS)
        idle.bring_to_front()
        idle.evaluate("dispatchEvent(new Event('focus'))")  # a reader comes back to it before the minute is over
        expect(idle.locator("#connection")).to_contain_text("does not answer", timeout=30 * SECONDS)
        service.start("api")
        expect(idle.locator("#connection")).to_have_text("", timeout=ENDED)
        page.bring_to_front()
        expect(page.locator("#connection")).to_have_text("", timeout=ENDED)
        text = page.locator("#progress-text").inner_text()
        expect(page.locator("#progress-text")).not_to_have_text(text, timeout=ENDED)
        page.get_by_role("button", name="Finish now").click(timeout=ENDED)
        expect(page.locator(".verdict-line")).to_contain_text("ended early", timeout=ENDED)
        second.bring_to_front()
        expect(second.get_by_role("row", name="in a browser")).to_contain_text("succeeded", timeout=ENDED)


def test_without_scripts_a_job_is_started_and_seen(browser: Browser, service: Service, inputs: tuple[str, str]) -> None:
    with signed_in(browser, service, java_script_enabled=False) as (page, _):
        page.goto("/jobs/new")
        page.get_by_label("Checkpoint").select_option(inputs[0])
        page.get_by_label("Dataset").select_option(inputs[1])
        page.get_by_label("Method", exact=True).select_option("cyclic_swa")
        page.get_by_role("button", name="Show its fields").click()
        page.get_by_label("How long: cycles", exact=True).fill("200")
        page.get_by_label("Name", exact=True).fill("no scripts")
        page.get_by_role("button", name="Start the job").click()
        expect(page.get_by_role("heading", name="no scripts")).to_be_visible()
        page.get_by_role("link", name="Cancel…").click()
        page.get_by_role("button", name="Yes, cancel it").click()
        expect(page.get_by_role("row", name="no scripts")).to_contain_text("cancelled")
