"""The form that asks a job's networks about pictures, in a real Chromium: by keyboard, with thumbnails, faults by name."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import Service
from tests.dashboard.browser import SECONDS, chromium, needs_chromium, signed_in
from tests.dashboard.test_browser import check_accessible
from tests.material import archive_bytes, write_archive, write_start

pytestmark = [needs_chromium, pytest.mark.long]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def pictures(folder: Path, count: int) -> list[Path]:
    with zipfile.ZipFile(io.BytesIO(archive_bytes())) as archive:
        names = [name for name in archive.namelist() if name.startswith("val/")][:count]
        for n, name in enumerate(names):
            (folder / f"picture-{n}.png").write_bytes(archive.read(name))
    return [folder / f"picture-{n}.png" for n in range(len(names))]


def test_pictures_are_answered_with_thumbnails_once_the_job_has_succeeded(
    browser: Browser, service: Service, tmp_path: Path
) -> None:
    files = pictures(tmp_path, 3)
    with service.client() as client:
        checkpoint, dataset = (
            client.checkpoints.create(write_start(tmp_path)).id,
            client.datasets.create(write_archive(tmp_path)).id,
        )
        job = client.jobs.create(checkpoint=checkpoint, dataset=dataset, method={"cycles": 2}, swag=2).id or ""
    with signed_in(browser, service) as (page, watched):
        page.goto(f"/jobs/{job}")  # it runs, and the form comes when it has succeeded
        form = page.locator("#ask-form")
        expect(form).to_be_visible(timeout=120 * SECONDS)
        check_accessible(page)
        page.get_by_label("Images").set_input_files(files)
        page.get_by_label("Network").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        rows = page.locator("#ask-answers tbody tr")
        expect(rows).to_have_count(3, timeout=60 * SECONDS)
        expect(rows.nth(1)).to_contain_text("picture-1.png")
        expect(rows.nth(1).get_by_role("img", name="picture-1.png")).to_be_visible()
        drawn = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((x, i) => i % 4 < 3 && x > 0)"
        assert rows.nth(1).locator("canvas").evaluate(drawn), "it shows the picture"
        with service.client() as client:
            top = client.jobs.predict(job, files).data[1].top[0]
        expect(rows.nth(1)).to_contain_text(f"{top.label} {100 * top.probability:.1f} %")
        expect(page.locator("#ask-status")).to_contain_text("3 images answered in")
        check_accessible(page)

        page.get_by_label("Network").select_option("swag")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#ask-caption")).to_contain_text("means over 2 networks", timeout=60 * SECONDS)
        expect(rows.nth(0)).to_contain_text("±")

        broken = tmp_path / "broken.png"
        broken.write_bytes(files[0].read_bytes()[:-9])
        watched.allowed = ("422 ",)
        page.get_by_label("Images").set_input_files([files[0], broken])
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#ask-fault")).to_contain_text("'broken.png' cannot be decoded", timeout=60 * SECONDS)
        expect(page.locator("#ask-answers")).to_be_hidden()

        page.get_by_label("Images").set_input_files([files[0]] * 65)
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#ask-fault")).to_contain_text("65 images are chosen, and one question takes 64")
