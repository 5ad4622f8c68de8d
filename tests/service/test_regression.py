"""Regression over HTTP: numbers in a table, a network with an output for each, errors in the targets' own units."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests import material
from tests.conftest import Service
from tests.training.regression_jobs import TARGETS, write_digits
from wbar.errors import InvalidArchive
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.mlflow_model import AveragedModel
from wbar_training.networks.architectures import initialized


@pytest.fixture(scope="module")
def ready(service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A small ResNet with an output for each target, as it is initialized, and a dataset."""
    folder = tmp_path_factory.mktemp("uploads")
    torch.manual_seed(0)
    write_safetensors(folder / "net.safetensors", initialized(Network("resnet20", len(TARGETS))).state_dict(), {})
    with service.client() as client:
        checkpoint = client.checkpoints.create(folder / "net.safetensors")
        dataset = client.datasets.create(write_digits(folder / "digits.zip", 60, 30), task="regression")
        assert (dataset.task, dataset.classes, dataset.class_counts) == ("regression", list(TARGETS), None)
        return checkpoint.id, dataset.id


def test_from_the_upload_to_the_report(service: Service, ready: tuple[str, str], tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        other = client.datasets.create(write_digits(tmp_path / "other.zip", 10, 20), task="regression").id
        job = client.jobs.create(
            checkpoint=ready[0],
            dataset=ready[1],
            method={"cycles": 2, "high": {"lr": 0.002}, "low": {"lr": 0.0002}}
            | {"average": "window", "guard": True, "control": True},
            recipe={"loss": "huber", "huber_delta": 1.5},
            evaluate={"other": other},
            formats=["onnx"],
        )  # fmt: skip
        assert job.id is not None
        assert (job.recipe.augment, job.recipe.loss, job.recipe.image_size) == ("none", "huber", (8, 8))
        done = client.jobs.wait(job.id)
        assert done.status == "succeeded", done.error
        assert done.result is not None
        scores = done.result.metrics
        assert scores.averaged.regression is not None
        assert list(scores.averaged.regression.by_target) == list(TARGETS)
        assert scores.averaged.accuracy == scores.averaged.regression.r2
        assert (scores.averaged.ece, scores.averaged.temperature) == (None, None)
        assert done.result.evaluation["other"].metrics.averaged.regression is not None
        client.jobs.download(job.id, tmp_path / "weights.safetensors")
        with safe_open(tmp_path / "weights.safetensors", framework="pt") as file:
            units = json.loads(file.metadata()["wbar.targets"])
        assert len(units["mean"]) == len(units["std"]) == 2
        report = http.get(f"/v1/jobs/{job.id}/report").text
        assert "Errors, by target" in report
        assert "standardized MSE" in report
        card = http.get(f"/v1/jobs/{job.id}/card").text
        assert "| | target | R² | RMSE | MAE |" in card
        assert "image-regression" in card
        assert "temperature" not in card
        assert http.get(f"/v1/datasets/{ready[1]}/samples").headers["content-type"] == "image/png"


@pytest.mark.long
def test_a_new_head_has_an_output_for_each_target(service: Service, ready: tuple[str, str], tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        classifier = client.checkpoints.create(material.write_start(tmp_path)).id
        refused = http.post("/v1/jobs", json={"checkpoint": classifier, "dataset": ready[1]})
        assert (refused.status_code, refused.json()["code"]) == (422, "classes_mismatch")
        assert "2 targets (ink, height)" in refused.json()["detail"]
        job = client.jobs.create(
            checkpoint=classifier,
            dataset=ready[1],
            method={"type": "auto", "epochs": 2},
            recipe={"head": "reset"},
        )
        assert job.id is not None
        done = client.jobs.wait(job.id)
        assert done.status == "succeeded", done.error
        assert done.result is not None
        client.jobs.download(job.id, tmp_path / "weights.safetensors")
        assert AveragedModel(tmp_path / "weights.safetensors").classes == list(TARGETS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": {"mixup": 0.2}}, "recipe.mixup: two images in one have no known target"),
        ({"recipe": {"cutmix": 1.0}}, "recipe.cutmix"),
        ({"recipe": {"label_smoothing": 0.1}}, "recipe.label_smoothing: a number is no class"),
        ({"recipe": {"class_weights": "balanced"}}, "recipe.class_weights: a number is no class"),
        ({"recipe": {"dice": 1}}, "the Dice loss is of pixels"),
        ({"recipe": {"augment": "flip"}}, "is of images with masks or boxes"),
        ({"recipe": {"huber_delta": 1}}, 'huber_delta is of loss "huber"'),
        ({"method": {"type": "auto", "select_by": "accuracy"}}, "'accuracy' is of classes"),
        ({"method": {"type": "auto", "select_by": "brier"}}, "'brier' is of classes"),
        ({"classes": ["ink", "width"]}, "the dataset has the targets ['ink', 'height']"),
        ({"classes": ["ink", "height", "width"], "recipe": {"head": "reset"}}, "give each of these once"),
    ],
)
def test_what_has_no_meaning_for_numbers_is_refused(
    service: Service, ready: tuple[str, str], change: dict[str, Any], said: str
) -> None:
    with service.http() as http:
        answer = http.post("/v1/jobs", json={"checkpoint": ready[0], "dataset": ready[1], **change})
    assert answer.status_code == 422, answer.text
    assert said in answer.text.replace('\\"', '"')


def test_options_of_regression_are_refused_elsewhere(service: Service, tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        body = {
            "checkpoint": client.checkpoints.create(material.write_start(tmp_path)).id,
            "dataset": client.datasets.create(material.write_archive(tmp_path)).id,
        }
        for recipe in ({"loss": "huber"}, {"standardize": False}):
            answer = http.post("/v1/jobs", json=body | {"recipe": recipe})
            assert answer.status_code == 422
            assert "it is of task regression" in answer.json()["detail"]


def test_a_table_that_does_not_fit_rejects_the_dataset_by_name(service: Service, tmp_path: Path) -> None:
    write_digits(tmp_path / "good.zip", 4, 2)
    with zipfile.ZipFile(tmp_path / "good.zip") as good, zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
        for name in good.namelist():
            if name != "val/0005.png":
                bad.writestr(name, good.read(name))
    with (
        service.client() as client,
        pytest.raises(InvalidArchive, match=r"names 1 images that are not there, the first 'val/0005.png'"),
    ):
        client.datasets.create(tmp_path / "bad.zip", task="regression")
