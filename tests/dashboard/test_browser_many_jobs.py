"""Ten thousand jobs in a real Chromium: the page stays as light as with fifty, and finds, sorts, turns and ticks among all."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import insert, select

from tests.conftest import Service
from tests.dashboard.browser import chromium, needs_chromium, signed_in
from tests.material import write_archive, write_start
from wbar_store.database import Tenant
from wbar_store.ids import new_id
from wbar_store.keys import Keys
from wbar_store.tables import jobs

pytestmark = [needs_chromium, pytest.mark.long]
CROWD = Tenant("crowd")
MANY, ROWS, ELEMENTS = 10_000, 50, 2_000
FAILED, PAUSED = 3, 5  # the last digits of the jobs that failed, and of those among the first hundred that are paused


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def key(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The key of a tenant that has ten thousand jobs: one that was run, and copies of its row."""
    folder = tmp_path_factory.mktemp("crowd")
    made = Keys(service.database).create("crowd", CROWD).key
    with service.client(made) as client:
        inputs = client.checkpoints.create(write_start(folder)).id, client.datasets.create(write_archive(folder)).id
        job = client.jobs.create(checkpoint=inputs[0], dataset=inputs[1], method={"cycles": 1}, name="the first")
        client.jobs.wait(job.id, timeout=120)
    with service.database.write() as connection:
        row = dict(connection.execute(select(jobs).where(jobs.c.id == job.id)).mappings().one())
        connection.execute(insert(jobs), [row | copy(n) for n in range(MANY - 1)])
    return made


def copy(n: int) -> dict[str, object]:
    ended = {"id": new_id("job"), "name": f"job {n}", "result_accuracy": n / MANY}
    if n % 10 == FAILED:
        return ended | {"status": "failed", "verdict": None, "result": None, "result_accuracy": None}
    if n % 10 == PAUSED and n < 100:
        return ended | {"status": "paused", "verdict": None, "result": None, "result_accuracy": None}
    return ended


def names(page: Page) -> list[str]:
    return page.locator("table.jobs tbody th a").all_inner_texts()


def check_light(page: Page) -> None:
    assert page.locator("table.jobs tbody tr").count() <= ROWS
    assert page.evaluate("document.getElementsByTagName('*').length") <= ELEMENTS


def test_ten_thousand_jobs(browser: Browser, service: Service, key: str) -> None:
    with signed_in(browser, service, key) as (page, _):
        assert names(page) == [f"job {n}" for n in range(MANY - 2, MANY - 2 - ROWS, -1)]
        expect(page.locator(".counts")).to_contain_text("1000 failed")
        check_light(page)

        page.get_by_label("Name").fill("job 777")
        page.get_by_role("button", name="Filter").click()
        expect(page.locator("table.jobs tbody tr")).to_have_count(11)
        page.get_by_label("Status").select_option("failed")
        page.get_by_role("button", name="Filter").click()
        expect(page.locator("table.jobs tbody th a")).to_have_text(["job 7773"])
        page.get_by_role("link", name="Clear").click()

        best = [n for n in range(MANY - 2, 0, -1) if n % 10 != FAILED]
        page.get_by_role("link", name="Accuracy", exact=True).click()
        expect(page.locator("th[aria-sort=descending]")).to_contain_text("Accuracy")
        first = names(page)
        assert first == [f"job {n}" for n in best[:ROWS]]
        for turned in (1, 2):
            page.get_by_role("link", name="Next page").click()
            expect(page.locator("table.jobs tbody th a").first).to_have_text(f"job {best[ROWS * turned]}")
            assert names(page) == [f"job {n}" for n in best[ROWS * turned : ROWS * (turned + 1)]]
            check_light(page)
        page.go_back()
        assert names(page) == [f"job {n}" for n in best[ROWS : 2 * ROWS]]
        page.get_by_role("link", name="First page").click()
        expect(page.locator("table.jobs tbody th a").first).to_have_text(first[0])
        assert names(page) == first


def test_some_of_ten_thousand_are_cancelled_and_deleted(browser: Browser, service: Service, key: str) -> None:
    with signed_in(browser, service, key) as (page, _):
        page.get_by_label("Status").select_option("paused")
        page.get_by_role("button", name="Filter").click()
        expect(page.locator("table.jobs tbody tr")).to_have_count(10)
        for name in ("job 5", "job 15", "job 25"):
            page.get_by_label(f"Tick {name}", exact=True).check()
        for action, verb in (("Cancel", "Yes, cancel them"), ("Delete", "Yes, delete them")):
            page.get_by_role("button", name=f"{action}…").click()
            expect(page.get_by_role("heading", name=f"{action} 3 jobs?")).to_be_visible()
            page.get_by_role("button", name=verb).click()
            expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
            page.goto("/?status=cancelled")
            if action == "Cancel":
                expect(page.locator("table.jobs tbody th a")).to_have_text(["job 25", "job 15", "job 5"])
                for box in page.locator("table.jobs tbody input").all():
                    box.check()
        expect(page.get_by_text("No job meets these conditions")).to_be_visible()
    with service.client(key) as client:
        assert len(client.jobs.list(status="paused").data) == 7
