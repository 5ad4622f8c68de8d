"""What a newcomer meets: an empty list, a short form that warns beside the field, a page that says when the service is gone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect

from benchmarks import shapes
from tests.conftest import Service
from tests.dashboard.browser import SECONDS, chromium, needs_chromium, signed_in
from tests.dashboard.test_browser import check_accessible
from tests.material import write_archive, write_part, write_start
from wbar_store.database import Tenant
from wbar_store.keys import Keys

pytestmark = needs_chromium
NOBODY = Tenant("newcomer")
READ = 60 * SECONDS
LEAVES = "dispatchEvent(new Event('beforeunload', { cancelable: true }))"  # false: the browser would ask


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    """The key of a tenant that has nothing yet."""
    return Keys(service.database).create("newcomer", NOBODY).key


def test_an_empty_list_shows_what_to_do_first_and_nothing_else(browser: Browser, service: Service, key: str) -> None:
    with signed_in(browser, service, key, viewport={"width": 360, "height": 740}) as (page, _):
        expect(page.get_by_text("No job yet")).to_be_visible()
        for tool in ("Filter", "Compare", "Show these"):
            expect(page.get_by_role("button", name=tool)).to_have_count(0)  # hidden ones have no role
        check_accessible(page)
        page.goto("/?status=failed")
        expect(page.get_by_role("button", name="Filter")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_form_is_short_and_warns_beside_its_field(
    browser: Browser, service: Service, key: str, tmp_path: Path
) -> None:
    with service.client(key) as client:
        checkpoint = client.checkpoints.create(write_start(tmp_path)).id
        whole, part = (client.datasets.create(write(tmp_path)).id for write in (write_archive, write_part))
    with signed_in(browser, service, key) as (page, _):
        page.goto("/jobs/new")
        seen = "fields => fields.filter((one) => one.type !== 'hidden' && one.checkVisibility()).map((one) => one.name)"
        names = page.locator("#new-job :is(input, select)[name]").evaluate_all(seen)
        assert names == ["checkpoint", "dataset", "method.type", "method.epochs", "method.control", "name"]
        page.get_by_label("Checkpoint", exact=True).select_option(checkpoint)
        page.get_by_label("Dataset", exact=True).select_option(part)
        beside = page.locator("[data-input=dataset] .field-warnings")
        expect(beside).to_contain_text("5 classes and the checkpoint's network 10 outputs")
        expect(beside).to_contain_text("there is no val/")
        expect(page.locator("#preview")).to_contain_text("2 warnings about the dataset")
        check_accessible(page)
        beside.get_by_role("link", name="recipe.head").click()  # what it names is folded, and opens
        expect(page.get_by_label("head", exact=True)).to_be_visible()
        page.get_by_label("head", exact=True).select_option("reset")
        expect(beside).not_to_contain_text("5 classes")
        page.get_by_label("Dataset", exact=True).select_option(whole)
        expect(beside).to_have_text("")
        group = page.get_by_text("Tags, priority, limits and seed")
        group.click()
        page.get_by_label("priority", exact=True).fill("many")
        group.click()
        expect(page.locator("[data-path=priority] .field-fault")).to_be_visible()  # a fault opens what it is folded in


@pytest.mark.long
def test_a_network_is_said_and_a_page_is_not_left_by_mistake(
    browser: Browser, service: Service, key: str, tmp_path: Path
) -> None:
    start, held = write_start(tmp_path), list[Route]()

    def hold(route: Route) -> None:
        held.append(route) if route.request.method == "PATCH" else route.continue_()

    with signed_in(browser, service, key) as (page, _):
        page.goto("/checkpoints")
        upload, status = page.locator("[data-upload] input[type=file]"), page.locator("[data-upload] [role=status]")
        page.get_by_text("Say it yourself").click()
        page.get_by_label("Network of the next upload").select_option("resnet32")
        upload.set_input_files(start)
        expect(status).to_contain_text("resnet32", timeout=READ)
        expect(page.get_by_role("row").filter(has_text="rejected").first).to_contain_text("architecture_mismatch")

        page.get_by_label("Network of the next upload").select_option("recognize it")
        page.route("**/v1/uploads/*", hold)
        assert page.evaluate(LEAVES)
        with page.expect_request(lambda request: request.method == "PATCH"):
            upload.set_input_files(start)
        assert not page.evaluate(LEAVES)
        held[0].continue_()
        expect(status).to_contain_text("resnet20, 10 classes", timeout=READ)
        assert page.evaluate(LEAVES)
        page.get_by_role("link", name="more about this checkpoint").click()
        expect(page.get_by_text("recognized by its tensors")).to_be_visible()
        page.get_by_role("button", name="Copy ckpt_").click()
        expect(page.get_by_role("button", name="Copy ckpt_")).to_have_text("Copied")


def test_what_the_labels_are_is_said(browser: Browser, service: Service, key: str, tmp_path: Path) -> None:
    shapes.write_archive(tmp_path / "shapes.zip", 8, 4, [(32, 32)])
    with signed_in(browser, service, key) as (page, _):
        page.goto("/datasets")
        upload, status = page.locator("[data-upload] input[type=file]"), page.locator("[data-upload] [role=status]")
        upload.set_input_files(tmp_path / "shapes.zip")
        expect(status).to_contain_text("task=segmentation", timeout=READ)  # taken for folders of classes
        page.get_by_text("Say otherwise").click()
        page.get_by_label("Labels of the next upload").select_option("segmentation")
        check_accessible(page)
        upload.set_input_files(tmp_path / "shapes.zip")
        expect(status).to_contain_text("8 training and 4 held-out images", timeout=READ)


def test_an_idle_page_says_when_the_service_is_gone(browser: Browser, service: Service, key: str) -> None:
    with signed_in(browser, service, key) as (page, watched):
        asked = list[str]()
        page.clock.install()
        page.goto("/keys")
        page.wait_for_load_state("networkidle")
        page.on("request", lambda request: asked.append(request.url))
        page.clock.run_for(59 * SECONDS)
        assert asked == []
        with page.expect_response("**/healthz"):
            page.clock.run_for(2 * SECONDS)
        watched.allowed = ("net::",)
        page.context.set_offline(True)
        page.clock.run_for(61 * SECONDS)
        expect(page.locator("#connection")).to_contain_text("does not answer")
        page.context.set_offline(False)
        page.clock.run_for(6 * SECONDS)
        expect(page.locator("#connection")).to_have_text("")


@pytest.mark.long
def test_the_axis_of_an_accuracy_ends_where_accuracies_do(browser: Browser, service: Service, key: str) -> None:
    ranges = """async () => {
      const { accuracies } = await import("/static/charts.js");
      return [[null, null], [1, 1], [0.97, 1], [0, 0], [0.5, 0.6]].map(([low, high]) => accuracies(null, low, high));
    }"""
    with signed_in(browser, service, key) as (page, _):
        for low, high in page.evaluate(ranges):
            assert 0 <= low < high <= 1
