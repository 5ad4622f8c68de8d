"""A job's networks answer about pictures, by task: the scores of the report follow from the answers about held-out images."""

import base64
import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.shapes import CLASSES, write_archive, write_boxes_archive
from tests.client.test_cli import wbar
from tests.conftest import Service
from tests.training.regression_jobs import TARGETS, write_digits
from wbar.datasets import Task
from wbar.jobs import Job
from wbar.predictions import BoxPredictions, NumberPredictions, PixelPredictions
from wbar.scores import Score
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.data.augment import Preparer
from wbar_training.data.boxes import load_boxes, targets_of
from wbar_training.networks.architectures import initialized
from wbar_training.networks.detectors import loss_of
from wbar_training.tasks.coco_scores import evaluators
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.packing import pack

SEGMENTING, MASKED = "lraspp_mobilenet_v3_large", "maskrcnn_resnet18_96_fpn"
GENTLE = {"cycles": 1, "high": {"lr": 1e-4}, "low": {"lr": 1e-5}}


def held_out(archive: Path) -> dict[str, bytes]:
    """The images of `val`, by name."""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.startswith("val/") and "/masks/" not in name]
        return {name: file.read(name) for name in names if name.endswith(".png")}


def made_job(service: Service, network: Path, archive: Path, task: Task, **fields: Any) -> Job:
    with service.client() as client:
        checkpoint = client.checkpoints.create(network).id
        dataset = client.datasets.create(archive, task=task).id
        job = client.jobs.create(checkpoint=checkpoint, dataset=dataset, **fields)
        done = client.jobs.wait(str(job.id), timeout=300)
        assert done.status == "succeeded", done.error
        return done


def scores(job: Job) -> dict[str, Score]:
    assert job.result is not None
    return job.result.metrics.named()


# Numbers.


@pytest.fixture(scope="module")
def numbers(service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    folder = tmp_path_factory.mktemp("numbers")
    torch.manual_seed(0)
    write_safetensors(folder / "net", initialized(Network("resnet20", len(TARGETS))).state_dict(), {})
    archive = write_digits(folder / "digits.zip", 60, 30)
    # In another order than the dataset has them: names are of outputs.
    method = {"cycles": 2, "high": {"lr": 0.002}, "low": {"lr": 0.0002}}
    return made_job(
        service, folder / "net", archive, "regression", method=method, swag=3, classes=list(reversed(TARGETS))
    ), archive


@pytest.mark.parametrize("network", ["averaged", "start", "swag"])
def test_numbers_are_in_the_targets_own_units(service: Service, numbers: tuple[Job, Path], network: str) -> None:
    job, archive = numbers
    with zipfile.ZipFile(archive) as file:
        rows = {row["image"]: row for row in csv.DictReader(io.StringIO(file.read("targets.csv").decode()))}
    images = held_out(archive)
    with service.client() as client:
        found = client.jobs.predict(str(job.id), list(images.values()), network=network)
    assert isinstance(found, NumberPredictions)
    assert (found.task, found.classes) == ("regression", list(reversed(TARGETS)))
    reported = scores(job)[network].regression
    assert reported is not None
    for target in TARGETS:
        truth = np.array([float(rows[name][target]) for name in images])
        answered = np.array([one.values[target] for one in found.data])
        r2 = 1 - np.square(answered - truth).sum() / np.square(truth - truth.mean()).sum()
        assert r2 == pytest.approx(reported.by_target[target].r2, rel=1e-3)
        assert np.abs(answered - truth).mean() == pytest.approx(reported.by_target[target].mae, rel=1e-3)
    if network == "swag":
        assert found.draws == 3
        spreads = [one.deviations for one in found.data]
        assert all(spread is not None and set(spread) == set(TARGETS) for spread in spreads)
        assert max(spread["ink"] for spread in spreads if spread) > 0
    else:
        assert (found.draws, found.data[0].deviations) == (None, None)


def test_a_score_is_of_boxes_and_numbers_have_no_top(service: Service, numbers: tuple[Job, Path]) -> None:
    path = f"/v1/jobs/{numbers[0].id}/predict"
    body = {"images": [base64.b64encode(one).decode() for one in held_out(numbers[1]).values()]}
    with service.http() as http:
        answer = http.post(f"{path}?score=0.5", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (422, "score")
        assert "the job is of task regression" in answer.json()["detail"]
        answer = http.post(f"{path}?top=1", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (422, "top")


def test_the_command_line_says_them(service: Service, numbers: tuple[Job, Path], tmp_path: Path) -> None:
    job, archive = numbers
    (tmp_path / "seven.png").write_bytes(next(iter(held_out(archive).values())))
    said = shell(service, "predict", str(job.id), str(tmp_path / "seven.png"), "--network", "swag")
    assert said.startswith(f"{tmp_path / 'seven.png'}: height ")
    assert ", ink " in said
    assert "±" in said


def shell(service: Service, *words: str) -> str:
    done = wbar(service, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Pixels.


@pytest.fixture(scope="module")
def pixels(service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    folder = tmp_path_factory.mktemp("pixels")
    torch.manual_seed(0)
    state = {f"module.{name}": one for name, one in initialized(Network(SEGMENTING, len(CLASSES))).state_dict().items()}
    write_safetensors(folder / "net", state, {})
    archive = folder / "shapes.zip"
    write_archive(archive, 8, 5, [(32, 32), (32, 40), (51, 33)], void_edge=True)
    method = {"cycles": 1, "high": {"lr": 0.02}, "low": {"lr": 0.002}}
    return made_job(service, folder / "net", archive, "segmentation", method=method), archive


def class_map(png: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        assert (image.format, image.mode) == ("PNG", "P")
        return np.asarray(image)


@pytest.mark.parametrize("network", ["averaged", "start"])
def test_every_pixel_has_the_class_that_was_scored(service: Service, pixels: tuple[Job, Path], network: str) -> None:
    job, archive = pixels
    images = held_out(archive)
    with service.client() as client:
        found = client.jobs.predict(str(job.id), list(images.values()), network=network)
    assert isinstance(found, PixelPredictions)
    assert found.classes == list(CLASSES)
    confusion = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    with zipfile.ZipFile(archive) as file:
        for (name, data), one in zip(images.items(), found.data, strict=True):
            answered = class_map(one.map)
            with Image.open(io.BytesIO(data)) as image:
                assert (one.width, one.height) == image.size == answered.shape[::-1]
            for k, label in enumerate(CLASSES):
                assert one.shares[label] == pytest.approx((answered == k).mean())
            mask = np.asarray(Image.open(io.BytesIO(file.read(name.replace("/images/", "/masks/")))))
            known = mask != 255
            np.add.at(confusion, (mask[known], answered[known]), 1)
    right, either = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    reported = scores(job)[network]
    assert right.sum() / confusion.sum() == pytest.approx(reported.accuracy, abs=5e-4)
    assert np.mean([r / e for r, e in zip(right, either, strict=True) if e]) == pytest.approx(
        reported.mean_iou, abs=5e-4
    )


def test_the_command_line_writes_class_maps(service: Service, pixels: tuple[Job, Path], tmp_path: Path) -> None:
    job, archive = pixels
    for name in ("one", "two"):
        (tmp_path / f"{name}.png").write_bytes(next(iter(held_out(archive).values())))
    files = [str(tmp_path / "one.png"), str(tmp_path / "two.png")]
    said = shell(service, "predict", str(job.id), *files, "--masks", str(tmp_path / "masks"))
    again = wbar(service, "predict", str(job.id), *files, "--masks", str(tmp_path / "masks"))
    assert again.returncode == 2
    assert "exists and is not written over" in again.stderr
    assert all(line.endswith("%") for line in said.splitlines())
    with Image.open(tmp_path / "masks" / "one.png") as one, Image.open(tmp_path / "masks" / "two.png") as two:
        assert (one.size, one.mode) == ((32, 32), "P")
        assert np.array_equal(np.asarray(one), np.asarray(two))


# Boxes and masks.


def fitted_detector(archive: Path, folder: Path) -> Path:
    """A Mask R-CNN that was trained on some of the held-out images, so that it finds something in them."""
    pack(archive, folder / "packed", UploadLimits(), "detection")
    split, prepare = (
        load_boxes(folder / "packed", "val", None, masks=True),
        Preparer((0.0,) * 3, (1.0,) * 3, "none", 0, torch.device("cpu")),
    )
    torch.manual_seed(0)
    model = initialized(Network(MASKED, len(CLASSES))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = split.batch(slice(0, 4), prepare)
    assert batch.masks is not None
    size = (batch.inputs.shape[-2], batch.inputs.shape[-1])
    for _ in range(40):
        optimizer.zero_grad()
        loss_of(model, batch.inputs, targets_of(batch.labels, batch.masks, size)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    write_safetensors(folder / "net", model.state_dict(), {})
    return folder / "net"


def average_precision(archive: Path, found: BoxPredictions, kind: str) -> list[float]:
    """COCO's numbers, by its own reading of boxes, scores and masks."""
    with zipfile.ZipFile(archive) as file:
        truth = json.loads(file.read("val/annotations.json"))
    coco_class, evaluation_class = next(iter(evaluators().values()))
    coco = coco_class()
    coco.dataset = truth | {"info": {}}
    coco.createIndex()
    rows = []
    for image, one in zip(truth["images"], found.data, strict=True):
        assert (one.height, one.width) == (image["height"], image["width"])
        for box in one.boxes:
            left, top, right, bottom = box.box
            assert box.mask is not None
            row = {"image_id": image["id"], "category_id": found.classes.index(box.label), "score": box.score}
            place = {"bbox": [left, top, right - left, bottom - top]} if kind == "bbox" else {}
            rows.append(row | place | ({"segmentation": box.mask.model_dump()} if kind == "segm" else {}))
    evaluation = evaluation_class(coco, coco.loadRes(rows), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(number) for number in evaluation.stats[:3]]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_boxes_and_masks_are_those_that_were_scored(service: Service, tmp_path: Path) -> None:
    archive = tmp_path / "shapes.zip"
    write_boxes_archive(archive, 4, 7, [(96, 96)], masks=True)
    network = fitted_detector(archive, tmp_path)
    job = made_job(service, network, archive, "detection", method=GENTLE, recipe={"batch_norm": "frozen"})
    images = list(held_out(archive).values())
    with service.client() as client, service.http() as http:
        for name in ("averaged", "start"):
            found = client.jobs.predict(str(job.id), images, network=name)
            assert isinstance(found, BoxPredictions)
            assert found.classes == list(CLASSES)
            reported = scores(job)[name]
            for kind, score in (("bbox", reported.boxes), ("segm", reported.masks)):
                assert score is not None
                assert score.ap is not None
                assert 0.05 < score.ap < 0.99, "it found something, and not everything"
                assert average_precision(archive, found, kind) == pytest.approx(
                    [score.ap, score.ap50, score.ap75], abs=2e-3
                )
        assert isinstance(found, BoxPredictions)
        every = [box for one in found.data for box in one.boxes]
        assert all(one.boxes == sorted(one.boxes, key=lambda box: -box.score) for one in found.data)
        middle = sorted(box.score for box in every)[len(every) // 2]
        sure = client.jobs.predict(str(job.id), images, network="start", score=middle - 1e-6)
        assert isinstance(sure, BoxPredictions)
        for some, one in zip(sure.data, found.data, strict=True):
            assert some.boxes == [box for box in one.boxes if box.score >= middle]
        best = client.jobs.predict(str(job.id), images, network="start", top=1)
        assert isinstance(best, BoxPredictions)
        assert [one.boxes for one in best.data] == [one.boxes[:1] for one in found.data]
        (tmp_path / "one.png").write_bytes(images[0])
        assert found.data[0].boxes[0].label in shell(service, "predict", str(job.id), str(tmp_path / "one.png"))
        plain = base64.b64encode(images[0]).decode()
        refused = http.post(f"/v1/jobs/{job.id}/predict", json={"images": [plain, plain[: len(plain) // 2]]})
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/images/1")
