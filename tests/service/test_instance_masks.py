"""Mask R-CNN over HTTP: boxes with masks, a network that learns them, mask AP where people look; and VOC's own folders."""

import io
import json
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.shapes import CLASSES, write_boxes_archive
from tests.conftest import Service
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized

NAME = "maskrcnn_resnet18_96_fpn"


@pytest.fixture(scope="module")
def network(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("network") / "net.safetensors"
    torch.manual_seed(0)
    write_safetensors(path, initialized(Network(NAME, len(CLASSES))).state_dict(), {})
    with service.client() as client:
        checkpoint = client.checkpoints.create(path)
        assert checkpoint.architecture is not None
        assert (checkpoint.architecture.name, checkpoint.architecture.num_classes) == (NAME, 4)
        return checkpoint.id


@pytest.mark.long
def test_from_the_upload_to_the_report(service: Service, network: str, tmp_path: Path) -> None:
    write_boxes_archive(tmp_path / "shapes.zip", 4, 2, [(48, 64), (48, 48)], masks=True)
    with service.client() as client, service.http() as http:
        dataset = client.datasets.create(tmp_path / "shapes.zip", task="detection")
        assert dataset.masks
        job = client.jobs.create(
            checkpoint=network,
            dataset=dataset.id,
            method={"cycles": 1, "high": {"lr": 0.002}, "low": {"lr": 0.0002}},
            recipe={"mixup": 1.5},
        )
        assert job.id is not None
        done = client.jobs.wait(job.id)
        assert done.status == "succeeded", done.error
        assert done.result is not None
        scores = done.result.metrics
        assert scores.averaged.masks is not None
        assert set(scores.averaged.masks.by_class) == set(CLASSES[1:])
        assert done.result.curve[0].mask_ap == scores.averaged.masks.ap
        told = [event.data for event in client.jobs.events(job.id) if event.type == "metrics"]
        assert told[-1]["masks"]["ap"] == scores.averaged.masks.ap
        client.jobs.download(job.id, tmp_path / "weights.safetensors")
        initialized(Network(NAME, 4)).load_state_dict(load_file(tmp_path / "weights.safetensors"))
        report = http.get(f"/v1/jobs/{job.id}/report").text
        assert "<h3>Masks</h3>" in report
        assert "Average precision of masks, by class" in report
        card = http.get(f"/v1/jobs/{job.id}/card").text
        assert "| AP | AP50 | AP75 | mask AP | mask AP50 |" in card
        assert f'initialized(Network("{NAME}", 4))' in card
        link = client.request("POST", "/v1/sign-in-links").json()["url"].partition("link=")[2]
        with httpx.Client(base_url=service.url, follow_redirects=True, trust_env=False) as browser:
            browser.post("/sign-in", data={"link": link, "next": "/"})
            assert "Mask AP" in browser.get(f"/jobs/{job.id}").text


def test_a_dataset_without_masks_is_refused_by_name(service: Service, network: str, tmp_path: Path) -> None:
    write_boxes_archive(tmp_path / "shapes.zip", 3, 2, [(48, 48)])
    with service.client() as client, service.http() as http:
        dataset = client.datasets.create(tmp_path / "shapes.zip", task="detection")
        assert not dataset.masks
        answer = http.post("/v1/jobs", json={"checkpoint": network, "dataset": dataset.id})
        assert (answer.status_code, answer.json()["code"]) == (422, "task_unsupported")
        assert f"the checkpoint is a {NAME}, which learns a mask for each box" in answer.json()["detail"]


def test_a_bad_mask_is_named_and_leaves_a_dataset_of_boxes(service: Service, network: str, tmp_path: Path) -> None:
    write_boxes_archive(tmp_path / "shapes.zip", 3, 2, [(32, 32)], masks=True)
    with zipfile.ZipFile(tmp_path / "shapes.zip") as good, zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            if name == "train/annotations.json":
                document = json.loads(data)
                document["annotations"][0]["segmentation"] = [[1, 2, 3, 4, 5, 6, 7]]
                data = json.dumps(document).encode()
            bad.writestr(name, data)
    with service.client() as client, service.http() as http:
        dataset = client.datasets.create(tmp_path / "bad.zip", task="detection")
        assert not dataset.masks
        assert any("annotation 1, polygon 0 of its `segmentation` has 7 numbers" in one for one in dataset.warnings)
        answer = http.post("/v1/jobs", json={"checkpoint": network, "dataset": dataset.id})
        assert (answer.status_code, answer.json()["code"]) == (422, "task_unsupported")


def picture(mode: str, value: int) -> bytes:
    file = io.BytesIO()
    shape = (24, 32, 3) if mode == "RGB" else (24, 32)
    Image.fromarray(np.full(shape, value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_vocs_own_folders_are_taken_as_they_are(service: Service, tmp_path: Path) -> None:
    box = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>12</xmax><ymax>9</ymax></bndbox>"
    xml = f"<annotation><object><name>dog</name><difficult>0</difficult>{box}</object></annotation>"
    with zipfile.ZipFile(tmp_path / "voc.zip", "w") as file:
        for name in "abc":
            file.writestr(f"VOCdevkit/VOC2012/JPEGImages/{name}.png", picture("RGB", 90))
            file.writestr(f"VOCdevkit/VOC2012/Annotations/{name}.xml", xml)
            file.writestr(f"VOCdevkit/VOC2012/SegmentationClass/{name}.png", picture("L", 12))
        for kind in ("Main", "Segmentation"):
            file.writestr(f"VOCdevkit/VOC2012/ImageSets/{kind}/train.txt", "a\nb\n")
            file.writestr(f"VOCdevkit/VOC2012/ImageSets/{kind}/val.txt", "c\n")
    with service.client() as client:
        boxes = client.datasets.create(tmp_path / "voc.zip", task="detection")
        assert (boxes.classes, boxes.masks) == (["background", "dog"], False)
        masks = client.datasets.create(tmp_path / "voc.zip", task="segmentation")
        assert masks.classes is not None
        assert (len(masks.classes), masks.classes[12]) == (21, "dog")
        assert masks.splits is not None
        assert (masks.splits["train"].images, masks.splits["val"].images) == (2, 1)
