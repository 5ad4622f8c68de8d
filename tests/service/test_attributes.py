"""Attributes over HTTP: categories in a table, a network with an output for each, and what is answered of each attribute."""

import csv
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests import material
from tests.conftest import Service
from tests.service.test_predict_tasks import shell
from tests.training.attribute_jobs import ATTRIBUTES, CLASSES, write_digits
from wbar.display import comparison
from wbar.errors import InvalidArchive
from wbar.predictions import AttributePredictions
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.mlflow_model import AveragedModel
from wbar_training.networks.architectures import initialized


@pytest.fixture(scope="module")
def ready(service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A small ResNet with an output for each category, as it is initialized, and a dataset."""
    folder = tmp_path_factory.mktemp("uploads")
    torch.manual_seed(0)
    write_safetensors(folder / "net.safetensors", initialized(Network("resnet20", len(CLASSES))).state_dict(), {})
    with service.client() as client:
        checkpoint = client.checkpoints.create(folder / "net.safetensors")
        dataset = client.datasets.create(write_digits(folder / "digits.zip", 60, 30), task="attributes")
        assert (dataset.task, dataset.classes, dataset.attributes) == ("attributes", CLASSES, ATTRIBUTES)
        assert dataset.class_counts is not None
        assert sum(dataset.class_counts["val"][:2]) == 30
        return checkpoint.id, dataset.id


@pytest.fixture(scope="module")
def trained(service: Service, ready: tuple[str, str]) -> str:
    """A job that has succeeded, with SWAG."""
    with service.client() as client:
        job = client.jobs.create(checkpoint=ready[0], dataset=ready[1], method={"cycles": 2}, swag=3)
        assert client.jobs.wait(job.id).status == "succeeded"
        return str(job.id)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, dict[str, str]]]:
    """The held-out images of the dataset, and what is known of each."""
    with zipfile.ZipFile(write_digits(tmp_path_factory.mktemp("images") / "digits.zip", 60, 30)) as file:
        rows = list(csv.DictReader(io.StringIO(file.read("attributes.csv").decode())))
        return [(file.read(row["image"]), row) for row in rows if row["image"].startswith("val/")]


@pytest.mark.parametrize("network", ["averaged", "start", "swag"])
def test_a_score_follows_from_predictions(
    service: Service, trained: str, images: list[tuple[bytes, dict[str, str]]], network: str
) -> None:
    with service.client() as client:
        found = client.jobs.predict(trained, [image for image, _ in images], network=network, top=1)
        everything = client.jobs.predict(trained, [images[0][0]], network=network, top=100)
        result = client.jobs.get(trained).result
    assert isinstance(found, AttributePredictions)
    assert found.classes == CLASSES
    assert result is not None
    reported = result.metrics.named()[network].attributes
    assert reported is not None
    for name in ATTRIBUTES:
        known = [
            (one.attributes[name][0], row[name]) for one, (_, row) in zip(found.data, images, strict=True) if row[name]
        ]
        right = sum(best.label == truth for best, truth in known)
        assert (len(known), right / len(known)) == (reported[name].images, reported[name].accuracy)
        assert (known[0][0].deviation is not None) == (network == "swag")
    assert isinstance(everything, AttributePredictions)
    for name, categories in ATTRIBUTES.items():
        each = everything.data[0].attributes[name]
        assert sorted(one.label for one in each) == categories
        assert sum(one.probability for one in each) == pytest.approx(1)


def test_the_command_line_names_the_surest_category(
    service: Service, trained: str, images: list[tuple[bytes, dict[str, str]]], tmp_path: Path
) -> None:
    (tmp_path / "digit.png").write_bytes(images[0][0])
    said = shell(service, "predict", trained, str(tmp_path / "digit.png"))
    assert re.search(r"parity: (even|odd) [\d.]+%, size: \w+ [\d.]+%, ink: \w+ [\d.]+%", said)


def test_from_the_upload_to_the_report(service: Service, ready: tuple[str, str], tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        other = client.datasets.create(write_digits(tmp_path / "other.zip", 30, 20), task="attributes").id
        job = client.jobs.create(
            checkpoint=ready[0],
            dataset=ready[1],
            method={"cycles": 2, "average": "window", "guard": True, "control": True},
            recipe={"label_smoothing": 0.1, "mixup": 0.2, "class_weights": "balanced"},
            evaluate={"other": other},
            probe=other,
            formats=["onnx"],
        )
        assert job.id is not None
        done = client.jobs.wait(job.id)
        assert done.status == "succeeded", done.error
        assert done.result is not None
        scores = done.result.metrics
        assert scores.averaged.attributes is not None
        assert list(scores.averaged.attributes) == list(ATTRIBUTES)
        known = [one.accuracy for one in scores.averaged.attributes.values() if one.accuracy is not None]
        assert scores.averaged.accuracy == pytest.approx(sum(known) / 3)
        assert scores.averaged.temperature is None
        assert done.result.evaluation["other"].metrics.averaged.attributes is not None
        assert [str(column.header) for column in comparison(done).columns][1:] == [
            "mean accuracy",
            "NLL",
            "ECE",
            *ATTRIBUTES,
        ]
        live = [event.data["attributes"] for event in client.jobs.events(job.id) if event.type == "metrics"]
        assert live
        assert all(list(each) == list(ATTRIBUTES) for each in live)
        assert all(point.accuracy is not None for point in client.jobs.metrics(job.id))
        client.jobs.download(job.id, tmp_path / "weights.safetensors")
        with safe_open(tmp_path / "weights.safetensors", framework="pt") as file:
            assert json.loads(file.metadata()["wbar.attributes"]) == {
                "parity": [0, 1],
                "size": [2, 3, 4],
                "ink": [5, 6],
            }
        report = http.get(f"/v1/jobs/{job.id}/report").text
        assert "Accuracy and loss, by attribute" in report
        assert "mean accuracy" in report
        assert done.result.probe is not None
        assert done.result.probe.images == 50
        assert done.result.probe.most_changed[0].averaged.label in CLASSES
        assert f"{done.result.probe.most_changed[0].averaged.label} (" in report
        card = http.get(f"/v1/jobs/{job.id}/card").text
        assert "| | attribute | images | accuracy | NLL (nats) |" in card
        assert "accuracy of parity" in card
        assert "pipeline_tag" not in card
        assert "temperature" not in card
        assert http.get(f"/v1/datasets/{ready[1]}/samples").headers["content-type"] == "image/png"
        again = client.checkpoints.create_from(job.id)
        planned = http.post("/v1/jobs", json={"checkpoint": again.id, "dataset": ready[1], "dry_run": True})
        assert planned.status_code in (200, 201), "the result is a start for the same dataset"


@pytest.mark.long
def test_a_new_head_has_an_output_for_each_category(service: Service, ready: tuple[str, str], tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        classifier = client.checkpoints.create(material.write_start(tmp_path)).id
        refused = http.post("/v1/jobs", json={"checkpoint": classifier, "dataset": ready[1]})
        assert (refused.status_code, refused.json()["code"]) == (422, "classes_mismatch")
        assert "have 7 categories together (parity=even, " in refused.json()["detail"]
        job = client.jobs.create(
            checkpoint=classifier,
            dataset=ready[1],
            method={"type": "auto", "epochs": 2},
            recipe={"head": "reset"},
        )
        assert job.id is not None
        done = client.jobs.wait(job.id)
        assert done.status == "succeeded", done.error
        client.jobs.download(job.id, tmp_path / "weights.safetensors")
        model = AveragedModel(tmp_path / "weights.safetensors")
        assert (model.classes, list(model.attributes)) == (CLASSES, sorted(ATTRIBUTES))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": {"dice": 1}}, "the Dice loss is of pixels"),
        ({"recipe": {"augment": "flip"}}, "is of images with masks or boxes"),
        ({"recipe": {"loss": "huber"}}, "it is of task regression"),
        ({"recipe": {"class_weights": [1.0, 2.0]}}, "recipe.class_weights has 2 numbers and the network 7 outputs"),
        ({"classes": [*CLASSES[:-1], "more"]}, "`classes` names ['more'], and the dataset has attributes"),
        ({"classes": [*CLASSES[:-1], "hue=red"]}, "names one category of ['ink', 'hue']"),
        ({"classes": [*CLASSES[:-1], "ink=none"]}, "does not name ['ink=much']"),
    ],
)
def test_what_does_not_fit_is_refused(
    service: Service, ready: tuple[str, str], change: dict[str, Any], said: str
) -> None:
    with service.http() as http:
        answer = http.post("/v1/jobs", json={"checkpoint": ready[0], "dataset": ready[1], **change})
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["detail"]


def test_a_table_that_does_not_fit_rejects_the_dataset_by_name(service: Service, tmp_path: Path) -> None:
    write_digits(tmp_path / "digits.zip", 7, 1)  # 0 … 6, and 7, which is the first large one
    with service.client() as client, pytest.raises(InvalidArchive, match="'size=large' is in val/ and not in train/"):
        client.datasets.create(tmp_path / "digits.zip", task="attributes")
