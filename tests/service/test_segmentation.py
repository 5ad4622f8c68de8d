"""Segmentation over HTTP: images with masks, a network with an answer for every pixel, a report with masks in it."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torchvision import models

from benchmarks.shapes import CLASSES, write_archive
from tests import material
from tests.conftest import Service, wait_until
from wbar.errors import InvalidArchive, UnknownArchitecture
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized

NAME = "lraspp_mobilenet_v3_large"


@pytest.fixture(scope="module")
def ready(service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A network that is as torchvision initializes it, under a wrapper's names, and a dataset."""
    folder = tmp_path_factory.mktemp("uploads")
    torch.manual_seed(0)
    state = {f"module.{name}": one for name, one in initialized(Network(NAME, 4)).state_dict().items()}
    write_safetensors(folder / "net.safetensors", state, {})
    write_archive(folder / "shapes.zip", 8, 4, [(32, 32), (32, 40)])
    with service.client() as client:
        checkpoint = client.checkpoints.create(folder / "net.safetensors")
        assert checkpoint.architecture is not None
        assert (checkpoint.architecture.name, checkpoint.architecture.num_classes) == (NAME, 4)
        dataset = client.datasets.create(folder / "shapes.zip", task="segmentation")
        assert (dataset.task, dataset.classes) == ("segmentation", list(CLASSES))
        assert dataset.class_counts is not None
        assert dataset.class_counts["train"][0] == 8
        return checkpoint.id, dataset.id


def test_from_the_upload_to_the_report(service: Service, ready: tuple[str, str], tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        job = client.jobs.create(
            checkpoint=ready[0],
            dataset=ready[1],
            method={"cycles": 1, "high": {"lr": 0.02, "shape": "poly"}, "low": {"lr": 0.002}},
            recipe={"dice": 0.5, "class_weights": "balanced"},
        )
        assert job.id is not None
        assert (job.recipe.augment, job.recipe.image_size, job.recipe.batch_size) == ("scale_crop_flip", (32, 36), 8)
        done = client.jobs.wait(job.id)
        assert done.status == "succeeded", done.error
        assert done.result is not None
        scores = done.result.metrics
        assert set(scores.averaged.iou or {}) == set(CLASSES)
        assert scores.averaged.mean_iou is not None
        assert (scores.averaged.ece, scores.averaged.temperature) == (None, None)
        assert done.result.curve[0].mean_iou == scores.averaged.mean_iou
        told = [event.data for event in client.jobs.events(job.id) if event.type == "metrics"]
        assert told[-1]["mean_iou"] == scores.averaged.mean_iou
        client.jobs.download(job.id, tmp_path / "weights.safetensors")
        tensors = {
            name.removeprefix("module."): one for name, one in load_file(tmp_path / "weights.safetensors").items()
        }
        models.get_model(NAME, weights=None, weights_backbone=None, num_classes=4).load_state_dict(tensors)
        report = http.get(f"/v1/jobs/{job.id}/report").text
        assert "Intersection over union, by class" in report
        assert "<td>triangle</td>" in report
        assert "src='data:image/png;base64," in report
        card = http.get(f"/v1/jobs/{job.id}/card").text
        assert "image-segmentation" in card
        assert "| mean IoU |" in card
        assert http.get(f"/v1/datasets/{ready[1]}/samples").headers["content-type"] == "image/png"
        entry = http.get("/v1/architectures?q=lraspp").json()["data"][0]
        assert (entry["name"], entry["outputs"]) == (NAME, "pixels")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": {"mixup": 0.2}}, "recipe.mixup: a mask cannot be blended"),
        ({"recipe": {"cutmix": 1.0}}, "recipe.cutmix"),
        ({"recipe": {"augment": "pad_crop"}}, "'pad_crop' changes images without their masks"),
        ({"recipe": {"gradient_penalty": 0.1}}, "recipe.gradient_penalty"),
        ({"recipe": {"crop_ratio": 0.9}}, "held-out images are used whole"),
        ({"recipe": {"class_weights": [1, 2]}}, "2 numbers and the network 4 outputs"),
        ({"formats": ["onnx"]}, "formats: a file of this format takes images of one size"),
        ({"swag": 5}, "swag: a Bayesian average"),
        ({"method": {"type": "auto", "select_by": "brier"}}, "the Brier score is of one answer"),
        ({"classes": ["a", "b", "c", "d"]}, "`classes` does not name"),
    ],
)
def test_what_has_no_meaning_for_pixels_is_refused(
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
        assert "segmentation takes deeplabv3_mobilenet_v3_large" in one.json()["detail"]
        other = http.post("/v1/jobs", json={"checkpoint": ready[0], "dataset": images})
        assert (other.status_code, other.json()["code"]) == (422, "task_unsupported")
        dice = http.post("/v1/jobs", json={"checkpoint": network, "dataset": images, "recipe": {"dice": 1}})
        assert "the Dice loss is of pixels" in dice.json()["detail"]


def test_masks_that_do_not_fit_reject_the_dataset_by_name(service: Service, tmp_path: Path) -> None:
    write_archive(tmp_path / "shapes.zip", 3, 2, [(32, 32)])
    with zipfile.ZipFile(tmp_path / "shapes.zip") as good, zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
        for name in good.namelist():
            if name != "train/masks/00001.png":
                bad.writestr(name, good.read(name))
    with service.client() as client, service.http() as http:
        with pytest.raises(InvalidArchive, match="1 images have no mask"):
            client.datasets.create(tmp_path / "bad.zip", task="segmentation")
        made = client.datasets.create(tmp_path / "shapes.zip", task="segmentation", void_label=0, wait=False)
        wait_until(lambda: client.datasets.get(made.id).status != "processing", 60, "the verdict")
        found = client.datasets.get(made.id)
        assert found.class_counts is not None
        assert found.class_counts["train"][3] == 0  # label 1 is the first line now, and none is left for the last
        refused = http.post("/v1/datasets?void_label=3", content=(tmp_path / "bad.zip").read_bytes())
        assert (refused.status_code, refused.json()["code"]) == (422, "validation_failed")


@pytest.mark.long
def test_a_network_of_segmentation_models_pytorch_by_name(breakable: Service, tmp_path: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="not installed: pip install 'wbar[smp]'")
    user = smp.Unet("mobilenet_v2", encoder_weights=None, classes=4)
    torch.save({"state_dict": user.state_dict()}, tmp_path / "unet.pt")
    write_archive(tmp_path / "shapes.zip", 8, 4, [(32, 32), (32, 40)])
    breakable.environment |= {"WBAR_SMP": "true"}
    breakable.start("api", "train", "ingest", "sweep")
    with breakable.client() as client, breakable.http() as http:
        dataset = client.datasets.create(tmp_path / "shapes.zip", task="segmentation").id
        with pytest.raises(UnknownArchitecture, match="is not a network of segmentation-models-pytorch"):
            client.checkpoints.create(tmp_path / "unet.pt", architecture="smp/unet-resnet35")
        listed = "/v1/architectures?q=smp unet mobilenet_v2"
        wait_until(lambda: http.get(listed).json()["data"], 120, "the worker to list the library's networks")
        entry = http.get(listed).json()["data"][0]
        assert (entry["library"], entry["outputs"], entry["family"]) == ("smp", "pixels", "unet")
        with pytest.raises(UnknownArchitecture, match="give `architecture`, the decoder and the encoder"):
            client.checkpoints.create(tmp_path / "unet.pt")
        checkpoint = client.checkpoints.create(tmp_path / "unet.pt", architecture="smp/unet-mobilenet_v2")
        job = client.jobs.create(
            checkpoint=checkpoint.id, dataset=dataset, method={"cycles": 1, "high": {"lr": 0.02}, "low": {"lr": 0.002}}
        )
        assert job.id is not None
        done = client.jobs.wait(job.id)
        assert done.status == "succeeded", done.error
        client.jobs.download(job.id, tmp_path / "weights.safetensors")
        user.load_state_dict(load_file(tmp_path / "weights.safetensors"))
        assert "your smp/unet-mobilenet_v2" in http.get(f"/v1/jobs/{job.id}/card").text
