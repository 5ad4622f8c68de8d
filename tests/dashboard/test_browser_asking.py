"""The form that asks a job's networks about pictures, in a real Chromium: by keyboard, with thumbnails, faults by name."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, expect

from benchmarks.shapes import write_archive as write_masks
from tests.conftest import Service
from tests.dashboard.browser import SECONDS, chromium, needs_chromium, signed_in
from tests.dashboard.test_browser import check_accessible
from tests.material import archive_bytes, write_archive, write_start
from wbar.predictions import ClassPredictions, PixelPredictions
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.data.coco_runs import as_text
from wbar_training.data.instance_masks import runs_of
from wbar_training.networks.architectures import initialized

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
            found = client.jobs.predict(job, files)
        assert isinstance(found, ClassPredictions)
        top = found.data[1].top[0]
        expect(rows.nth(1)).to_contain_text(f"{top.label} {100 * top.probability:.1f} %")
        expect(page.locator("#ask-status")).to_contain_text("3 images answered in")
        check_accessible(page)

        questions = list[str]()
        page.on("request", lambda request: questions.append(request.url) if "/predict" in request.url else None)
        page.get_by_label("Network").select_option("swag")
        form.evaluate("form => { form.requestSubmit(); form.requestSubmit(); }")
        expect(page.locator("#ask-caption")).to_contain_text("means over 2 networks", timeout=60 * SECONDS)
        expect(rows.nth(0)).to_contain_text("±")
        assert len(questions) == 1, "two quick clicks are one question"

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


DRAWN = """
async ([mask, box]) => {
  const { drawn, said } = await import("/static/answers.js");
  const [height, width] = mask.size, canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const one = { width, height, boxes: [{ label: "disc", score: 0.5, box, mask }] };
  await drawn(canvas, { task: "detection", classes: ["background", "disc"] }, one);
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  return [said("detection", one), Array.from({ length: width * height }, (_, i) => data[4 * i + 3] > 0)];
}
"""


def test_masks_are_drawn_where_they_are(browser: Browser, service: Service) -> None:
    mask = np.hypot(*np.ogrid[-30:31, -40:41]) < 22
    mask[25:31, 55:80] = np.random.default_rng(0).random((6, 25)) < 0.5
    runs = {"size": list(mask.shape), "counts": as_text(runs_of(mask.T))}
    with signed_in(browser, service) as (page, _):
        page.goto("/")
        words, painted = page.evaluate(DRAWN, [runs, [-9, -9, -9, -9]])
    assert words == "disc 50.0 %"
    below = np.array(painted).reshape(mask.shape)
    below[:15, :40] = mask[:15, :40]  # the label is written there
    assert np.array_equal(below, mask)


def test_classes_of_pixels_are_drawn_over_the_picture(browser: Browser, service: Service, tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_safetensors(tmp_path / "net", initialized(Network("lraspp_mobilenet_v3_large", 4)).state_dict(), {})
    write_masks(tmp_path / "shapes.zip", 4, 2, [(32, 48)])
    with zipfile.ZipFile(tmp_path / "shapes.zip") as archive:
        (tmp_path / "shape.png").write_bytes(archive.read("val/images/00000.png"))
    with service.client() as client:
        checkpoint = client.checkpoints.create(tmp_path / "net").id
        dataset = client.datasets.create(tmp_path / "shapes.zip", task="segmentation").id
        job = client.jobs.create(checkpoint=checkpoint, dataset=dataset, method={"cycles": 1}).id or ""
        assert client.jobs.wait(job, timeout=120).status == "succeeded"
        found = client.jobs.predict(job, [tmp_path / "shape.png"])
    assert isinstance(found, PixelPredictions)
    label, share = max(found.data[0].shares.items(), key=lambda one: one[1])
    with signed_in(browser, service) as (page, _):
        page.goto(f"/jobs/{job}")
        page.get_by_label("Images").set_input_files([tmp_path / "shape.png"])
        page.get_by_role("button", name="Ask", exact=True).click()
        row = page.locator("#ask-answers tbody tr")
        expect(row).to_contain_text(f"{label} {100 * share:.1f} %", timeout=60 * SECONDS)
        assert row.locator("canvas").evaluate("c => [c.width, c.height]") == [256, 171]
        check_accessible(page)
