"""Methods and recipes over HTTP: refused with their place, resolved in the job, run to the end by a real worker."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests.conftest import Service, wait_until
from tests.material import write_archive, write_start
from wbar.client import Client
from wbar.jobs import Job
from wbar.results import Comparisons
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized


@pytest.fixture(scope="module")
def ready(service: Service, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A checkpoint and a dataset that are ready."""
    folder = tmp_path_factory.mktemp("uploads")
    with service.client() as client:
        return client.checkpoints.create(write_start(folder)).id, client.datasets.create(write_archive(folder)).id


def finished(client: Client, job: Job) -> Job:
    assert job.id is not None
    done = client.jobs.wait(job.id)
    assert done.status == "succeeded", done.error
    return done


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": {"type": "magic"}}, "cyclic_swa, auto, swa, ema, lawa, none, soup"),
        ({"method": {"type": "ema", "decay": 1.0}}, "/method/decay"),
        ({"method": {"type": "swa", "epochs": 2, "anneal_epochs": 2}}, "anneal_epochs is 2 and epochs 2"),
        ({"method": {"high": {"lr": 0.1, "base_lr": 0.1}}}, "lr 0.1 and base_lr 0.1 are both given"),
        ({"method": {"average": "greedy", "include_start": True}}, "include_start goes with average uniform"),
        ({"method": {"type": "auto", "memorised": {"ratio": 20}}}, "/method/memorised/ratio"),
        ({"recipe": {"mixup": 0}}, "/recipe/mixup"),
        ({"recipe": {"class_weights": [1e-300] * 10}}, "/recipe/class_weights"),
        ({"recipe": {"devices": 64, "batch_size": 128}}, "there are 120 training images"),
        ({"method": {"low": {"epochs": 0}, "pull_in": "low"}}, "would never act"),
        ({"method": {"type": "none", "lr": 0.1, "final_lr": 0.2}}, "final_lr 0.2 is above lr 0.1"),
        ({"recipe": {"augment": "blur"}}, "/recipe/augment"),
        ({"recipe": {"precision": "tf32"}}, "which GPUs have"),
        ({"recipe": {"class_weights": [1, 2]}}, "2 numbers and the network 10 outputs"),
        ({"recipe": {"distillation": {"teacher": "ckpt_nobody"}}}, "there is no checkpoint"),
        ({"recipe": {"distillation": {"teacher": "job_nobody"}}}, "there is no job"),
        ({"recipe": {"gradient_penalty": 1, "precision": "float16"}}, "gradient_penalty"),
        ({"recipe": {"optimizer": {"name": "rmsprop", "alpha": 1}}}, "/recipe/optimizer/alpha"),
        # What only the resolved numbers show.
        ({"recipe": {"accumulate": 33}}, "leaves parts of a single image"),
        ({"recipe": {"optimizer": {"momentum": 0}}}, "set nesterov to false"),
        ({"method": {"high": {"base_lr": 100}}, "recipe": {"batch_size": 1024}}, "/method/high/lr"),
        (
            {"method": {"type": "swa", "epochs": 1000, "snapshot_steps": 1}},
            "15000 snapshots, one every 1 steps: at most 1000",
        ),
        ({"method": {"type": "swa", "snapshot_epochs": 1e-9}}, "/method/snapshot_epochs"),
        ({"recipe": {"distillation": {"teacher": ""}}}, "/recipe/distillation/teacher"),
        ({"recipe": {"mixup": 1e-6}}, "/recipe/mixup"),
        (
            {"method": {"type": "soup", "checkpoints": ["SELF", "OTHER"]}, "recipe": {"head": "reset"}},
            "a soup trains nothing",
        ),
    ],
)
def test_what_makes_no_job_is_said(
    service: Service, ready: tuple[str, str], tmp_path: Path, change: dict, said: str
) -> None:
    if "checkpoints" in change.get("method", {}):
        with service.client() as client:
            other = client.checkpoints.create(write_start(tmp_path, "module."))
        change = change | {"method": {"type": "soup", "checkpoints": [ready[0], other.id]}}
    with service.http() as http:
        for dry in (False, True):
            answer = http.post("/v1/jobs", json={"checkpoint": ready[0], "dataset": ready[1], "dry_run": dry, **change})
            assert answer.status_code in (404, 422)
    assert said in json.dumps(answer.json(), ensure_ascii=False), answer.json()


@pytest.mark.parametrize("field", ["checkpoint", "dataset"])
def test_half_a_character_is_no_id(service: Service, ready: tuple[str, str], field: str) -> None:
    body = {"checkpoint": ready[0], "dataset": ready[1]} | {field: "\ud800"}
    with service.http() as http:
        answer = http.post("/v1/jobs", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"/{field}"


@pytest.mark.parametrize("path", ["/v1/jobs?after=ckpt_1", "/v1/datasets?after=job_1", "/v1/checkpoints?after=x"])
def test_a_page_begins_after_an_id_of_its_own_kind(service: Service, path: str) -> None:
    with service.http() as http:
        answer = http.get(path)
    assert answer.status_code == 422
    assert "is no id of a" in answer.json()["detail"]
    assert [one["parameter"] for one in answer.json()["errors"]] == ["after"]


@pytest.mark.parametrize(
    "recipe",
    [{"optimizer": {}}, {"label_smoothing": 0.1}, {"grad_clip_norm": 1}, {"early_stopping": 2, "freeze": ["x"]}],
)
def test_a_soup_refuses_what_is_about_training_and_names_it(
    service: Service, ready: tuple[str, str], tmp_path: Path, recipe: dict
) -> None:
    with service.client() as client, service.http() as http:
        other = client.checkpoints.create(write_start(tmp_path, "module.")).id
        method = {"type": "soup", "checkpoints": [ready[0], other]}
        answer = http.post(
            "/v1/jobs", json={"checkpoint": ready[0], "dataset": ready[1], "method": method, "recipe": recipe}
        )
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [f"/recipe/{name}" for name in sorted(recipe)]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (
            {"type": "auto"},
            {"lr": 0.00625, "probe_rate": True, "guard": True, "control_lr": 0.00625},
        ),
        ({"type": "swa"}, {"lr": 0.003125, "anneal_from": 0.00625}),
        ({"type": "ema"}, {"lr": 0.003125, "final_lr": 0.0003125}),
        ({"type": "lawa", "base_lr": 0.32}, {"lr": 0.01, "base_lr": None}),
        ({"type": "none"}, {"lr": 0.00625, "final_lr": 0.0}),
        ({"high": {"base_lr": 0.64}}, {"high": {"lr": 0.02}, "low": {"lr": 0.002}, "pull": 0.0005}),
    ],
)
def test_a_dry_run_shows_the_numbers(service: Service, ready: tuple[str, str], method: dict, expected: dict) -> None:
    with service.http() as http:
        body = {"checkpoint": ready[0], "dataset": ready[1], "dry_run": True, "method": method}
        job = http.post("/v1/jobs", json=body).json()
    for name, value in expected.items():
        found = job["method"][name]
        if isinstance(value, dict):
            assert {key: found[key] for key in value} == pytest.approx(value), name
        else:
            assert found == (value if value is None else pytest.approx(value)), name
    assert job["recipe"]["batch_norm"] == ("track" if method.get("type") == "none" else "recompute")
    assert job["estimate"]["steps"] == 12 * 15


def test_auto_with_control_and_guard_reports_on_images_it_did_not_choose_by(
    service: Service, ready: tuple[str, str]
) -> None:
    method = {"type": "auto", "epochs": 3, "control": True, "guard": True}
    with service.client() as client, service.http() as http:
        job = finished(client, client.jobs.create(checkpoint=ready[0], dataset=ready[1], method=method))
        result = job.result
        assert result is not None
        assert (result.held_out.selection, result.held_out.report) == (30, 30)
        assert result.metrics.control is not None
        assert result.selection is not None
        assert result.selection.of == 8
        assert result.selection.assumed, "30 images cannot choose"
        assert result.selection.loss is not None
        assert result.selection.optimism is not None
        assert result.rate_probe is not None
        assert result.metrics.averaged.temperature is not None
        assert job.progress is not None
        assert job.progress.step == job.progress.total_steps
        page = http.get(f"/v1/jobs/{job.id}/report").text
        assert Comparisons.label("control") in page
        assert "selected on 30 held-out images; every number is from the other 30" in page
        assert len(http.get(f"/v1/jobs/{job.id}/snapshots").json()["data"]) == 8
        points = http.get(f"/v1/jobs/{job.id}/metrics").json()["data"]
        assert all(0 <= point["accuracy"] <= 1 for point in points)
        logs = [event.data["message"] for event in client.jobs.events(job.id) if event.type == "log"]
        assert any("the high rate is" in line for line in logs)
        assert any("assumed, not chosen" in line for line in logs)


def test_the_guard_gives_the_start_back(service: Service, ready: tuple[str, str], tmp_path: Path) -> None:
    ruinous = {"type": "none", "epochs": 1, "lr": 1.0, "shape": "constant", "guard": True, "back_off": False}
    with service.client() as client:
        job = finished(client, client.jobs.create(checkpoint=ready[0], dataset=ready[1], method=ruinous))
        assert job.id is not None
        assert job.result is not None
        assert job.result.selection is not None
        assert job.result.selection.delivered == "start"
        assert job.result.verdict == "worse"
        client.jobs.download(job.id, tmp_path / "weights.safetensors")
        client.checkpoints.download(ready[0], tmp_path / "start.safetensors")
        # The average itself, as the same job delivers it without a guard.
        client.jobs.download(job.id, tmp_path / "averaged.safetensors", which="averaged")
        client.jobs.download(job.id, tmp_path / "averaged.pth", "pytorch", which="averaged")
        without = client.jobs.create(checkpoint=ready[0], dataset=ready[1], method=ruinous | {"guard": False})
        unguarded = finished(client, without)
        client.jobs.download(str(unguarded.id), tmp_path / "unguarded.safetensors")
        with service.http() as http:
            path = f"/v1/jobs/{unguarded.id}/weights"
            same = [http.head(path + query).headers["etag"] for query in ("", "?which=averaged")]
            assert same[0] == same[1], "the average is what is delivered"
            kept = http.head(f"/v1/jobs/{job.id}/weights?which=averaged").headers
            assert f"{job.id}-averaged.safetensors" in kept["content-disposition"]
            assert http.get(path + "?which=both").status_code == 422
        averaged, unguarded_ = (load_file(tmp_path / f"{name}.safetensors") for name in ("averaged", "unguarded"))
        saved = torch.load(tmp_path / "averaged.pth")
        assert all(
            torch.equal(tensor, averaged[name]) and torch.equal(tensor, saved[name])
            for name, tensor in unguarded_.items()
        )
        client.jobs.delete(job.id)
        assert kept["etag"].strip('"') not in service.blob_files()
    with (
        safe_open(tmp_path / "weights.safetensors", "pt") as mine,
        safe_open(tmp_path / "start.safetensors", "pt") as own,
    ):
        assert mine.metadata()["wbar.snapshots"] == "0"
        assert all(bool((mine.get_tensor(name) == own.get_tensor(name)).all()) for name in own.keys())  # noqa: SIM118


@pytest.mark.long
def test_a_former_job_teaches_and_is_kept_as_long_as_it_does(service: Service, ready: tuple[str, str]) -> None:
    short = {"cycles": 2}
    with service.client() as client, service.http() as http:
        teacher = finished(client, client.jobs.create(checkpoint=ready[0], dataset=ready[1], method=short))
        recipe = {
            "distillation": {"teacher": teacher.id, "temperature": 2.0},
            "mixup": 0.2,
            "accumulate": 2,
            "class_weights": "balanced",
            "freeze": ["conv1.*"],
            "optimizer": {"name": "adamw"},
        }
        body = {"checkpoint": ready[0], "dataset": ready[1], "method": short, "recipe": recipe}
        long = body | {"dry_run": True, "method": {"cycles": 500}}  # seconds are rounded to a tenth
        costs = [http.post("/v1/jobs", json=one).json()["estimate"] for one in (long, long | {"recipe": {}})]
        assert costs[0]["steps"] == costs[1]["steps"]
        assert costs[0]["seconds"] == pytest.approx(costs[1]["seconds"] * 5 / 3, rel=0.05)  # two more forward passes
        student = client.jobs.create(**body)
        refused = http.delete(f"/v1/jobs/{teacher.id}")
        assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
        assert student.id is not None
        assert student.id in refused.json()["detail"]
        finished(client, student)
        assert http.delete(f"/v1/jobs/{teacher.id}").status_code == 200
        assert http.delete(f"/v1/jobs/{student.id}").status_code == 200


@pytest.mark.long
def test_two_processes_share_a_batch(service: Service, ready: tuple[str, str]) -> None:
    with service.client() as client:
        recipe = {"devices": 2, "batch_size": 16}
        job = client.jobs.create(checkpoint=ready[0], dataset=ready[1], method={"cycles": 1}, recipe=recipe)
        result = finished(client, job).result
    assert result is not None
    assert result.metrics.averaged.accuracy > 0.3


def test_several_labels_and_a_new_head(service: Service, ready: tuple[str, str], tmp_path: Path) -> None:
    path, table = tmp_path / "labels.zip", "image,odd,large\n"
    with zipfile.ZipFile(path, "w") as archive:
        for split, count in (("train", 32), ("val", 12)):
            for i in range(count):
                data = io.BytesIO()
                Image.new("L", (8, 8), 40 + 100 * (i % 2) + 60 * (i % 4 > 1)).save(data, "PNG")
                archive.writestr(f"{split}/{i}.png", data.getvalue())
                table += f"{split}/{i}.png,{i % 2},{int(i % 4 > 1)}\n"
        archive.writestr("labels.csv", table)
    with service.client() as client, service.http() as http:
        dataset = client.datasets.create(path, task="multilabel")
        assert (dataset.task, dataset.classes) == ("multilabel", ["odd", "large"])
        body = {"checkpoint": ready[0], "dataset": dataset.id, "method": {"cycles": 1}, "recipe": {"head": "reset"}}
        job = finished(client, client.jobs.create(**body))
        assert job.classes == ["odd", "large"]
        assert job.result is not None
        assert job.id is not None
        found = job.result.metrics.averaged
        assert found.map is not None
        assert found.average_precision is not None
        assert len(found.average_precision) == 2
        client.jobs.download(job.id, tmp_path / "weights.safetensors")
        with safe_open(tmp_path / "weights.safetensors", "pt") as file:
            assert file.get_tensor("fc.weight").shape == (2, 64)
            assert file.metadata()["wbar.num_classes"] == "2"
        without = http.post("/v1/datasets?task=multilabel", json={"source": "builtin:digits"})
        assert (without.status_code, without.json()["code"]) == (422, "task_unsupported")
        bad = client.datasets.create(write_archive(tmp_path), task="multilabel", wait=False)
        wait_until(lambda: client.datasets.get(bad.id).status == "rejected", 60, "the verdict")
        error = client.datasets.get(bad.id).error
        assert error is not None
        assert "labels.csv" in error.message


def test_what_names_nothing_in_the_network_fails_the_job_with_the_names(
    service: Service, ready: tuple[str, str]
) -> None:
    with service.client() as client:
        job = client.jobs.create(checkpoint=ready[0], dataset=ready[1], recipe={"freeze": ["features.*"]})
        assert job.id is not None
        failed = client.jobs.wait(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == "nothing_matches"
    assert "conv1.weight" in failed.error.message


def test_a_teacher_with_other_inputs_or_another_order_is_refused(
    service: Service, ready: tuple[str, str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    large = tmp_path / "large.safetensors"
    write_safetensors(large, initialized(Network("squeezenet1_1", 10)).state_dict(), {})
    with service.client() as client, service.http() as http:
        teacher = client.checkpoints.create(large).id
        body = {"checkpoint": ready[0], "dataset": ready[1], "dry_run": True}
        small = http.post("/v1/jobs", json=body | {"recipe": {"distillation": {"teacher": teacher}}})
        assert (small.status_code, small.json()["code"]) == (422, "image_size_unsupported")
        former = finished(client, client.jobs.create(checkpoint=ready[0], dataset=ready[1], method={"cycles": 1}))
        recipe = {"distillation": {"teacher": former.id}}
        turned = http.post("/v1/jobs", json=body | {"recipe": recipe, "classes": list("1023456789")})
        assert (turned.status_code, turned.json()["code"]) == (422, "checkpoints_differ")
        assert "output 0 is '0' in the teacher" in turned.json()["detail"]


def image_archive(folder: Path, sizes: dict[str, list[tuple[int, int]]]) -> Path:
    """A zip of JPEGs whose brightness says the class; for each class the sizes of its images, in train/ and in val/."""
    generator, out = np.random.default_rng(0), folder / "images.zip"
    with zipfile.ZipFile(out, "w") as archive:
        for index, (label, shapes) in enumerate(sizes.items()):
            for split in ("train", "val"):
                for n, (width, height) in enumerate(shapes):
                    pixels = generator.integers(0, 60, (height, width), dtype=np.uint8) + 180 * index
                    data = io.BytesIO()
                    Image.fromarray(pixels.astype(np.uint8)).save(data, "JPEG")
                    archive.writestr(f"{split}/{label}/{n}.jpg", data.getvalue())
    return out


def upload_start(client: Client, folder: Path, network: Network) -> str:
    torch.manual_seed(3)
    path = folder / f"{network.name}-{network.num_classes}.safetensors"
    write_safetensors(path, initialized(network).state_dict(), {})
    return client.checkpoints.create(path).id


def test_a_single_output_for_two_classes_from_upload_to_download(service: Service, tmp_path: Path) -> None:
    sizes = {"dark": [(8, 8)] * 30, "light": [(8, 8)] * 30}
    with service.client() as client:
        start = upload_start(client, tmp_path, Network("resnet20", 1, channels=1))
        assert client.checkpoints.get(start).architecture.num_classes == 1
        dataset = client.datasets.create(image_archive(tmp_path, sizes)).id
        job = finished(client, client.jobs.create(checkpoint=start, dataset=dataset, method={"cycles": 2}))
        assert job.id is not None
        assert job.result is not None
        assert job.result.metrics.averaged.accuracy > 0.9
        client.jobs.download(job.id, tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert file.metadata()["wbar.num_classes"] == "1"
        assert json.loads(file.metadata()["wbar.classes"]) == ["dark", "light"]


@pytest.mark.parametrize(
    ("shapes", "size", "augment"),
    [
        ([(40, 30), (50, 60)], [224, 224], "resized_crop_flip"),  # many sizes
        ([(100, 80)] * 2, [224, 224], "resized_crop_flip"),  # large
        ([(96, 64)] * 2, [64, 96], "pad_crop_flip"),
    ],
)
def test_defaults_for_photographs(
    service: Service, tmp_path: Path, shapes: list[tuple[int, int]], size: list[int], augment: str
) -> None:
    with service.client() as client:
        start = upload_start(client, tmp_path, Network("resnet18", 2, channels=1))
        dataset = client.datasets.create(image_archive(tmp_path, {"a": shapes, "b": shapes})).id
        job = client.jobs.create(checkpoint=start, dataset=dataset, dry_run=True)
    assert (list(job.recipe.image_size), job.recipe.augment) == (size, augment)


def test_the_job_shows_the_normalization_that_was_found(service: Service, ready: tuple[str, str]) -> None:
    with service.client() as client:
        job = finished(client, client.jobs.create(checkpoint=ready[0], dataset=ready[1], method={"cycles": 1}))
        given = finished(
            client,
            client.jobs.create(
                checkpoint=ready[0], dataset=ready[1], method={"cycles": 1}, recipe={"normalize": "imagenet"}
            ),
        )
    assert job.result is not None
    assert job.result.normalization is not None
    assert job.result.normalization.normalization == job.recipe.normalize
    assert min(job.result.normalization.losses.values()) > 0
    assert given.result is not None
    assert given.result.normalization is None, "what was given is not looked for"


def test_a_job_without_a_result_shows_it_too(service: Service, ready: tuple[str, str]) -> None:
    with service.client() as client:
        made = client.jobs.create(checkpoint=ready[0], dataset=ready[1], method={"cycles": 25})
        assert made.id is not None

        def found() -> bool:
            progress = client.jobs.get(made.id or "").progress
            return progress is not None and progress.normalize is not None

        wait_until(found, 60, "the normalization")
        client.jobs.cancel(made.id)
        cancelled = client.jobs.wait(made.id, timeout=60)
    assert cancelled.progress is not None
    assert (cancelled.status, cancelled.result) == ("cancelled", None)
    assert cancelled.recipe.normalize == cancelled.progress.normalize


def test_a_low_rate_above_the_high_one_is_refused_also_once_auto_is_resolved(
    service: Service, ready: tuple[str, str]
) -> None:
    with service.http() as http:
        body = {"checkpoint": ready[0], "dataset": ready[1], "method": {"low": {"lr": 0.5}}}
        answer = http.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert "low.lr 0.5 is above high.lr 0.003125" in answer.text
