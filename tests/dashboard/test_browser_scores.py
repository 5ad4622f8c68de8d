"""What a score is called and how it is written, in a real Chromium: R² is no accuracy and no percentage, on any page."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page, expect

from benchmarks.shapes import write_archive as write_masks
from tests.conftest import Service
from tests.dashboard.browser import chromium, needs_chromium, signed_in
from tests.material import write_archive, write_start
from tests.training.regression_jobs import TARGETS, write_digits
from wbar.client import Client
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized

pytestmark = [needs_chromium, pytest.mark.long]
BRIEF = {"cycles": 2, "high": {"lr": 0.002}, "low": {"lr": 0.0002}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def jobs(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An ended job of each of three tasks, by the task."""
    folder = tmp_path_factory.mktemp("scores")
    with service.client() as client:
        numbers = write_digits(folder / "numbers.zip", 60, 30)
        masks = folder / "masks.zip"
        write_masks(masks, 8, 4, [(32, 32)])
        other = client.datasets.create(write_digits(folder / "other.zip", 10, 20), task="regression").id
        made = {
            "regression": client.jobs.create(
                checkpoint=fresh(client, folder, Network("resnet20", len(TARGETS))),
                dataset=client.datasets.create(numbers, task="regression").id,
                method=BRIEF | {"interpolate": {"choose": "selection"}},
                evaluate={"other": other},
                name="numbers",
            ).id,
            "segmentation": client.jobs.create(
                checkpoint=fresh(client, folder, Network("lraspp_mobilenet_v3_large", 4)),
                dataset=client.datasets.create(masks, task="segmentation").id,
                method=BRIEF,
                name="masks",
            ).id,
            "classification": client.jobs.create(
                checkpoint=client.checkpoints.create(write_start(folder)).id,
                dataset=client.datasets.create(write_archive(folder)).id,
                method=BRIEF,
                name="classes",
            ).id,
        }
        for job in made.values():
            assert client.jobs.wait(job or "", timeout=240).status == "succeeded"
    return {task: job or "" for task, job in made.items()}


def fresh(client: Client, folder: Path, network: Network) -> str:
    torch.manual_seed(0)
    path = folder / f"{network.name}.safetensors"
    write_safetensors(path, initialized(network).state_dict(), {})
    return client.checkpoints.create(path).id


def axis_of(page: Page) -> str:
    """The numbers that the chart of the score shows below it, for a point."""
    chart = page.locator(".chart[data-curve=accuracy]")
    expect(chart.locator(".u-legend")).to_be_visible()
    return chart.inner_text()


def test_a_job_page_says_what_the_score_is(browser: Browser, service: Service, jobs: dict[str, str]) -> None:
    with signed_in(browser, service) as (page, _):
        for task, name, percent in (("regression", "R²", False), ("segmentation", "Pixel accuracy", True)):
            page.goto(f"/jobs/{jobs[task]}")
            table = page.get_by_role("region", name="Comparisons")
            expect(table.locator("thead")).to_contain_text(name)
            expect(table.locator("thead th")).to_have_count(6 if percent else 5)  # nothing stands beside R² and loss
            assert ("%" in table.locator("tbody").inner_text()) == percent
            page.get_by_text("2 snapshots").click()
            snapshots = page.get_by_role("region", name="Snapshots")
            expect(snapshots.locator("thead")).to_contain_text(name)
            assert ("%" in snapshots.locator("tbody").inner_text()) == percent
            said = axis_of(page)
            assert (name if name == "R²" else name.lower()) in said
        page.goto(f"/jobs/{jobs['regression']}")
        assert "accuracy" not in page.locator("#state").inner_text().lower()
        expect(page.get_by_role("region", name="Evaluation sets").locator("caption")).to_have_text(
            "On the evaluation sets: R², loss"
        )
        expect(page.locator("figcaption", has_text="Held-out R² of the average")).to_be_visible()


def test_jobs_of_several_tasks_side_by_side(browser: Browser, service: Service, jobs: dict[str, str]) -> None:
    with signed_in(browser, service) as (page, _):
        rows = page.locator("table.jobs tbody tr")
        expect(rows.filter(has_text="numbers")).to_contain_text("R²")
        expect(rows.filter(has_text="masks")).to_contain_text("pixel accuracy")
        assert "%" not in rows.filter(has_text="numbers").inner_text()
        page.goto("/compare?" + "&".join(f"job={jobs[task]}" for task in ("regression", "classification")))
        scores = page.get_by_role("region", name="Score").locator("tbody")
        expect(scores).to_contain_text("R²")
        expect(scores).to_contain_text("accuracy")


def test_a_report_says_what_the_score_is(service: Service, jobs: dict[str, str]) -> None:
    with service.http() as http:
        report = http.get(f"/v1/jobs/{jobs['regression']}/report").text
    body = report[report.index("<body>") :]
    assert "accuracy" not in body.lower()
    assert "loss (standardized MSE)" in body
    assert "nats" not in body
