"""Probe images of a job: uploaded without labels, refused by name, kept while they are needed, answered when it is done."""

import io
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Service, wait_until
from tests.material import archive_bytes, write_archive, write_start
from wbar import Client


def unlabelled(folder: Path) -> Path:
    """The training images of three classes in a folder that says nothing."""
    path = folder / "pictures.zip"
    with zipfile.ZipFile(io.BytesIO(archive_bytes())) as given, zipfile.ZipFile(path, "w") as made:
        for name in given.namelist():
            if name.startswith("train/") and name.split("/")[1] in "012":
                made.writestr(zipfile.ZipInfo(f"pictures/{name.split('/')[2]}"), given.read(name))
    return path


@pytest.fixture(scope="module")
def inputs(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("probe")
    with service.client() as client:
        checkpoint = client.checkpoints.create(write_start(folder)).id
        dataset = client.datasets.create(write_archive(folder)).id
    return {"checkpoint": checkpoint, "dataset": dataset, "method": {"cycles": 1}}


def refused(http: httpx.Client, asked: dict[str, Any], status: int, code: str) -> str:
    for more in ({}, {"dry_run": True}):
        answer = http.post("/v1/jobs", json=asked | more)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return str(answer.json()["detail"])


def test_a_job_answers_its_probe_images(service: Service, inputs: dict[str, Any], tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        probe = client.datasets.create(unlabelled(tmp_path), task="unlabelled")
        assert (probe.status, probe.task, probe.classes) == ("ready", "unlabelled", []), probe.error
        assert http.get(f"/v1/datasets/{probe.id}/samples").status_code == 200
        assert "without labels" in refused(http, inputs | {"dataset": probe.id}, 422, "task_unsupported")
        assert "unlabelled" in refused(http, inputs | {"evaluate": {"a": probe.id}}, 422, "validation_failed")
        assert "ds_none" in refused(http, inputs | {"probe": "ds_none"}, 404, "not_found")
        dry = client.jobs.create(**inputs, probe=probe.id, dry_run=True)
        assert (dry.probe, dry.id) == (probe.id, None)
        long = client.jobs.create(**inputs | {"method": {"cycles": 200}}, probe=probe.id)
        in_use = http.delete(f"/v1/datasets/{probe.id}")
        assert (in_use.status_code, in_use.json()["code"]) == (409, "in_use"), in_use.text
        early = http.get(f"/v1/jobs/{long.id}/probe")
        assert (early.status_code, early.json()["code"]) == (409, "job_not_finished")
        assert long.id is not None
        client.jobs.cancel(long.id)
        job = client.jobs.clone(long.id, method={"cycles": 1})
        assert job.probe == probe.id
        check(client, http, str(job.id), tmp_path)
        assert http.delete(f"/v1/datasets/{probe.id}").status_code == 200, "an ended job needs it no more"


def check(client: Client, http: httpx.Client, job_id: str, folder: Path) -> None:
    done = client.jobs.wait(job_id, timeout=180)
    assert done.status == "succeeded", done.error
    assert done.result is not None
    found = done.result.probe
    assert found is not None
    assert found.images == 36
    client.jobs.download_probe(job_id, folder / "probe.npz")
    with np.load(folder / "probe.npz", allow_pickle=False) as file:
        assert set(file.files) == {*found.networks, "classes", "names"}
        p, q = file["ensemble"].astype(float), file["averaged"].astype(float)
        assert file["names"][0].startswith("pictures/")
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-2, abs=1e-6)
    page = http.get(f"/v1/jobs/{job_id}/report").text
    assert "Probe images" in page
    assert "moved by 4 pixels" in page
    assert str(found.most_changed[0].name) in page


def test_a_job_without_probe_images_has_none(service: Service, inputs: dict[str, Any]) -> None:
    with service.client() as client, service.http() as http:
        job = client.jobs.create(**inputs)
        done = client.jobs.wait(str(job.id), timeout=180)
        assert done.result is not None
        assert "probe" not in http.get(f"/v1/jobs/{job.id}").json()["result"]
        problem = http.get(f"/v1/jobs/{job.id}/probe")
        assert (problem.status_code, problem.json()["code"]) == (409, "no_weights"), problem.text
        assert "was not asked for" in problem.json()["detail"]


def test_a_broken_or_an_empty_archive_is_rejected_by_name(service: Service, tmp_path: Path) -> None:
    with service.client() as client:
        for name, content, code in (("a.txt", b"no image", "no_images"), ("b.png", b"no png", "broken_image")):
            with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
                archive.writestr(name, content)
            with service.http() as http:
                made = http.post("/v1/datasets?task=unlabelled", content=(tmp_path / "some.zip").read_bytes()).json()
            wait_until(lambda made=made: client.datasets.get(made["id"]).status != "processing", 60, "the verdict")  # type: ignore[misc]
            read = client.datasets.get(made["id"])
            assert read.status == "rejected"
            assert read.error is not None
            assert read.error.code == code


def test_pictures_of_many_sizes_are_packed(service: Service, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for side in (5, 9):
            file = io.BytesIO()
            Image.new("RGB", (side, 8), (side, 0, 0)).save(file, "PNG")
            archive.writestr(f"{side}.png", file.getvalue())
    with service.client() as client:
        made = client.datasets.create(tmp_path / "some.zip", task="unlabelled")
        assert made.splits is not None
        assert made.splits["train"].images == 2
