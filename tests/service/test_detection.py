"""Detection over HTTP: images with boxes, a network that finds them, a report with boxes in it."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torchvision import models

from benchmarks.shapes import CLASSES, write_boxes_archive
from tests import material
from tests.conftest import Service
from wbar.errors import InvalidArchive
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized

NAME = "ssdlite320_mobilenet_v3_large"


@pytest.fixture(scope="module")
def ready(service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A network that is as torchvision initializes it, under a wrapper's names, and a dataset."""
    folder = tmp_path_factory.mktemp("uploads")
    torch.manual_seed(0)
    state = {f"module.{name}": one for name, one in initialized(Network(NAME, 4)).state_dict().items()}
    write_safetensors(folder / "net.safetensors", state, {})
    write_boxes_archive(folder / "shapes.zip", 4, 2, [(48, 64), (48, 48)])
    with service.client() as client:
        checkpoint = client.checkpoints.create(folder / "net.safetensors")
        assert checkpoint.architecture is not None
        assert (checkpoint.architecture.name, checkpoint.architecture.num_classes) == (NAME, 4)
        dataset = client.datasets.create(folder / "shapes.zip", task="detection")
        assert (dataset.task, dataset.classes) == ("detection", list(CLASSES))
        assert dataset.class_counts is not None
        assert dataset.class_counts["train"][0] == 0
        return checkpoint.id, dataset.id


def test_from_the_upload_to_the_report(service: Service, ready: tuple[str, str], tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        job = client.jobs.create(
            checkpoint=ready[0],
            dataset=ready[1],
            method={"cycles": 1, "high": {"lr": 0.002, "shape": "sawtooth"}, "low": {"lr": 0.0002}},
        )
        assert job.id is not None
        recipe = job.recipe
        assert (recipe.augment, recipe.image_size, recipe.batch_size) == ("flip", (48, 56), 8)
        assert (recipe.batch_norm, recipe.precision, recipe.optimizer.weight_decay) == ("frozen", "float32", 1e-4)
        done = client.jobs.wait(job.id)
        assert done.status == "succeeded", done.error
        assert done.result is not None
        scores = done.result.metrics
        assert scores.averaged.boxes is not None
        assert set(scores.averaged.boxes.by_class) == set(CLASSES[1:])
        assert (scores.averaged.ece, scores.averaged.temperature, scores.ensemble) == (None, None, None)
        assert scores.snapshots is not None
        assert done.result.curve[0].ap50 == scores.averaged.boxes.ap50
        told = [event.data for event in client.jobs.events(job.id) if event.type == "metrics"]
        assert told[-1]["boxes"]["ap50"] == scores.averaged.boxes.ap50
        assert all(point.accuracy is None for point in client.jobs.metrics(job.id))
        client.jobs.download(job.id, tmp_path / "weights.safetensors")
        tensors = {
            name.removeprefix("module."): one for name, one in load_file(tmp_path / "weights.safetensors").items()
        }
        models.get_model(NAME, weights=None, weights_backbone=None, num_classes=4).load_state_dict(tensors)
        report = http.get(f"/v1/jobs/{job.id}/report").text
        assert "Average precision, by class" in report
        assert "<td>triangle</td>" in report
        assert "mean score of the snapshots" in report
        assert "src='data:image/png;base64," in report
        card = http.get(f"/v1/jobs/{job.id}/card").text
        assert "object-detection" in card
        assert "| AP | AP50 | AP75 |" in card
        assert http.get(f"/v1/datasets/{ready[1]}/samples").headers["content-type"] == "image/png"
        entry = http.get("/v1/architectures?q=ssdlite").json()["data"][0]
        assert (entry["name"], entry["outputs"]) == (NAME, "boxes")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": {"cutmix": 1.0}}, "recipe.cutmix"),
        ({"recipe": {"augment": "pad_crop"}}, "'pad_crop' changes images without their boxes"),
        ({"recipe": {"gradient_penalty": 0.1}}, "recipe.gradient_penalty: a detector computes its losses itself"),
        ({"recipe": {"label_smoothing": 0.1}}, "recipe.label_smoothing"),
        ({"recipe": {"class_weights": "balanced"}}, "recipe.class_weights"),
        ({"recipe": {"dice": 1}}, "recipe.dice"),
        ({"recipe": {"compile": True}}, "recipe.compile"),
        ({"recipe": {"normalize": "imagenet"}}, "a detector normalizes its images itself"),
        ({"recipe": {"precision": "bfloat16"}}, "'bfloat16' would round the coordinates of boxes"),
        ({"recipe": {"crop_ratio": 0.9}}, "held-out images are used whole"),
        ({"formats": ["onnx"]}, "formats: a file of this format takes images of one size"),
        ({"swag": 5}, "swag: no mean of several networks' boxes"),
        ({"flatness": True}, "flatness: it is of one loss without draws"),
        ({"method": {"type": "auto", "select_by": "accuracy"}}, "an average precision is of many images"),
        ({"classes": ["disc", "square", "triangle", "background"]}, "class 0 of a detector is 'background'"),
        ({"classes": ["background", "b", "c", "d"]}, "`classes` does not name"),
    ],
)
def test_what_has_no_meaning_for_boxes_is_refused(
    service: Service, ready: tuple[str, str], change: dict[str, Any], said: str
) -> None:
    with service.http() as http:
        answer = http.post("/v1/jobs", json={"checkpoint": ready[0], "dataset": ready[1], **change})
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["detail"]


def test_network_and_dataset_must_be_for_one_task(service: Service, ready: tuple[str, str], tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        network = client.checkpoints.create(material.write_start(tmp_path)).id
        images = client.datasets.create(material.write_archive(tmp_path)).id
        one = http.post("/v1/jobs", json={"checkpoint": network, "dataset": ready[1]})
        assert (one.status_code, one.json()["code"]) == (422, "task_unsupported")
        assert "detection takes fasterrcnn_mobilenet_v3_large_320_fpn" in one.json()["detail"]
        other = http.post("/v1/jobs", json={"checkpoint": ready[0], "dataset": images})
        assert (other.status_code, other.json()["code"]) == (422, "task_unsupported")
        assert "which finds boxes" in other.json()["detail"]
        flip = http.post("/v1/jobs", json={"checkpoint": network, "dataset": images, "recipe": {"augment": "flip"}})
        assert "is of images with masks or boxes" in flip.json()["detail"]


def test_a_bad_box_rejects_the_dataset_by_name(service: Service, tmp_path: Path) -> None:
    write_boxes_archive(tmp_path / "shapes.zip", 3, 2, [(32, 32)])
    with zipfile.ZipFile(tmp_path / "shapes.zip") as good, zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            if name == "train/annotations.json":
                document = json.loads(data)
                document["annotations"][0]["bbox"] = [0, 0, 33, 64]
                data = json.dumps(document).encode()
            bad.writestr(name, data)
    with (
        service.client() as client,
        pytest.raises(
            InvalidArchive, match=r"annotation 1 has the bbox .* reaches out of its image 'train/images/00000.png'"
        ),
    ):
        client.datasets.create(tmp_path / "bad.zip", task="detection")
