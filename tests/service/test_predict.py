"""A job's networks answer about pictures: as a slow twin does, refused by name, and a killed worker is said to be gone."""

import base64
import io
import os
import signal
import time
import zipfile
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
import redis
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests.conftest import Service, wait_until
from tests.material import archive_bytes, write_archive, write_start
from tests.store.rows import result, spec
from wbar import Client
from wbar.errors import NoWeights, ValidationFailed
from wbar.predictions import ClassPredictions
from wbar.spec import Network
from wbar_service.jobs.predicting import _draws
from wbar_training.networks.architectures import load


def pictures(count: int = 5) -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(archive_bytes())) as archive:
        names = [name for name in archive.namelist() if name.startswith("val/")]
        return [archive.read(name) for name in names[:: len(names) // count][:count]]


def asked(client: Client, job: str, images: list[bytes], network: str = "averaged") -> ClassPredictions:
    found = client.jobs.predict(job, images, network=network)
    assert isinstance(found, ClassPredictions)
    return found


def made_job(service: Service, folder: Path, **fields: Any) -> str:
    with service.client() as client:
        checkpoint = client.checkpoints.create(write_start(folder)).id
        dataset = client.datasets.create(write_archive(folder)).id
        job = client.jobs.create(checkpoint=checkpoint, dataset=dataset, method={"cycles": 2}, **fields)
        done = client.jobs.wait(str(job.id), timeout=180)
        assert done.status == "succeeded", done.error
        return str(job.id)


@pytest.fixture(scope="module")
def job(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    return made_job(service, tmp_path_factory.mktemp("predict"))


def expected(client: Client, job: str, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    normalize = client.jobs.get(job).recipe.normalize
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(one))) for one in pictures()])
    inputs = torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1).double() / 255
    mean, std = (torch.tensor(x).view(1, -1, 1, 1) for x in (normalize.mean, normalize.std))  # type: ignore[union-attr]
    model, _ = load(Network("resnet20", 10), weights)
    with torch.no_grad():
        return model.eval()(((inputs - mean) / std).float()).double().softmax(1)


def test_each_network_answers_as_its_weights_do(service: Service, job: str, tmp_path: Path) -> None:
    with service.client() as client:
        client.jobs.download(job, tmp_path / "averaged")
        client.jobs.download_snapshot(job, 1, tmp_path / "snapshot_1")
        write_start(tmp_path).rename(tmp_path / "start")
        for network in ("averaged", "snapshot_1", "start"):
            found = asked(client, job, pictures(), network)
            got = torch.tensor([one.probabilities for one in found.data], dtype=torch.float64)
            torch.testing.assert_close(got, expected(client, job, load_file(tmp_path / network)), atol=1e-5, rtol=1e-3)
            assert found.classes == [str(k) for k in range(10)]
            assert found.data[0].top[0].probability == max(found.data[0].probabilities)
            assert (found.network, found.job, found.task) == (network, job, "classification")
        again = asked(client, job, [pictures()[0]], "start")
        assert again.cached
        assert again.data[0].probabilities == pytest.approx(found.data[0].probabilities, rel=1e-4)


def test_the_control_can_be_had_and_asked(service: Service, job: str, tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        clone = client.jobs.clone(job, method={"cycles": 1, "control": True})
        done = client.jobs.wait(str(clone.id), timeout=180)
        assert done.status == "succeeded", done.error
        path = tmp_path / "control.safetensors"
        client.jobs.download(str(done.id), path, which="control")
        with safe_open(path, framework="pt") as file:
            assert (file.metadata()["wbar.architecture"], file.metadata()["wbar.snapshots"]) == ("resnet20", "1")
        found = asked(client, str(done.id), pictures(), "control")
        got = torch.tensor([one.probabilities for one in found.data], dtype=torch.float64)
        torch.testing.assert_close(got, expected(client, str(done.id), load_file(path)), atol=1e-5, rtol=1e-3)
        said = http.get(f"/v1/jobs/{done.id}/weights?which=control&format=pytorch")
        assert (said.status_code, said.json()["errors"][0]["pointer"]) == (422, "/format"), said.text
        absent = http.get(f"/v1/jobs/{job}/weights?which=control")
        assert (absent.status_code, absent.json()["code"]) == (409, "no_weights"), absent.text


def test_multipart_is_the_same(service: Service, job: str) -> None:
    with service.client() as client, service.http() as http:
        files = [("file", (f"{n}.png", one)) for n, one in enumerate(pictures(3))]
        answer = http.post(f"/v1/jobs/{job}/predict", files=files)
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"] == client.jobs.predict(job, pictures(3)).model_dump(mode="json")["data"]


def refused(http: httpx.Client, path: str, status: int, code: str, **sent: Any) -> dict[str, Any]:
    answer = http.post(path, **sent)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    problem: dict[str, Any] = answer.json()
    return problem


def test_what_cannot_be_answered_is_refused_by_name(service: Service, job: str, tmp_path: Path) -> None:
    path, good = f"/v1/jobs/{job}/predict", base64.b64encode(pictures()[0]).decode()
    with service.client() as client, service.http() as http:
        for wrong in (b"no image", pictures()[0][:-9], b"GIF89a" + bytes(9)):
            with pytest.raises(ValidationFailed, match="images/1") as raised:
                client.jobs.predict(job, [pictures()[0], wrong])
            assert raised.value.errors is not None
            assert raised.value.errors[0]["pointer"] == "/images/1"
        bomb = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
        assert "pixels" in refused(http, path, 422, "validation_failed", files={"file": bomb.getvalue()})["detail"]
        many = {"images": [good] * 65}
        assert "/images" in refused(http, path, 422, "validation_failed", json=many)["errors"][0]["pointer"]
        for body in ({"images": []}, {"images": ["%%"]}, {"images": good}, {}, {"images": [good], "more": 1}):
            refused(http, path, 422, "validation_failed", json=body)
        refused(http, path, 422, "validation_failed", content=b"raw")
        refused(http, path, 422, "validation_failed", files={"other": pictures()[0]})
        refused(http, path, 400, "bad_request", files=[("file", pictures()[0])] * 65)
        refused(http, path, 413, "too_large", json={"images": [base64.b64encode(bytes(23 * 2**20)).decode()]})
        other = refused(http, f"{path}?network=other", 422, "validation_failed", json={"images": [good]})
        assert "there is no network 'other': a job may have `averaged`, `start`" in other["errors"][0]["detail"]
        refused(http, f"{path}?network=snapshot_9", 404, "not_found", json={"images": [good]})
        with pytest.raises(NoWeights, match="no weights of a control: it was not asked for"):
            client.jobs.predict(job, pictures(), network="control")
        refused(http, "/v1/jobs/job_none/predict", 404, "not_found", json={"images": [good]})
    with service.http(service.other_key) as stranger:
        refused(stranger, path, 404, "not_found", json={"images": [good]})
    with service.http(None) as nobody:
        refused(nobody, path, 401, "unauthorized", json={"images": [good]})
    assert not list((service.folder / "scratch" / "predict").glob("*")), "nothing is kept"


def test_a_job_of_several_labels_answers_label_by_label(service: Service, tmp_path: Path) -> None:
    rows = ["image,even,small"]
    with zipfile.ZipFile(io.BytesIO(archive_bytes())) as given, zipfile.ZipFile(tmp_path / "labels.zip", "w") as made:
        for name in given.namelist():
            split, digit, file = name.split("/")
            made.writestr(zipfile.ZipInfo(f"{split}/{digit}-{file}"), given.read(name))
            rows.append(f"{split}/{digit}-{file},{int(int(digit) % 2 == 0)},{int(int(digit) < 5)}")
        made.writestr("labels.csv", "\n".join(rows))
    with service.client() as client:
        dataset = client.datasets.create(tmp_path / "labels.zip", task="multilabel").id
        checkpoint = client.checkpoints.create(write_start(tmp_path)).id
        method, recipe = {"cycles": 2}, {"head": "reset"}
        made_job = client.jobs.create(
            checkpoint=checkpoint, dataset=dataset, method=method, recipe=recipe, probe=dataset, swag=1
        )
        done = client.jobs.wait(str(made_job.id), timeout=180)
        assert done.result is not None, done.error
        assert done.result.probe is not None
        assert done.result.probe.images == 180, "those of train/ and of val/"
        for network in ("averaged", "start"):  # whose fresh layers follow from the seed
            found = asked(client, str(done.id), pictures(), network)
            assert (found.task, found.classes) == ("multilabel", ["even", "small"])
        client.jobs.download_probe(str(done.id), tmp_path / "probe.npz")
        with np.load(tmp_path / "probe.npz", allow_pickle=False) as kept:
            with zipfile.ZipFile(io.BytesIO(archive_bytes())) as archive:
                val = [name for name in archive.namelist() if name.startswith("val/")]
                image = archive.read(val[0])
            one = asked(client, str(done.id), [image], "start").data[0].probabilities
            assert np.abs(kept["start"][120:] - one).sum(1).min() < 1e-4, "as the probe images were answered"
        client.jobs.download(str(done.id), tmp_path / "swag", which="swag")
        assert any(name.startswith("deviations.") for name in load_file(tmp_path / "swag"))
        with service.http() as http:
            path = f"/v1/jobs/{done.id}/weights?which=swag&format=pytorch"
            answer = http.get(path)
            assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


@pytest.fixture(scope="module")
def drawn(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A job that measured networks drawn from SWAG's Gaussian."""
    return made_job(service, tmp_path_factory.mktemp("swag"), swag=3)


def test_networks_drawn_from_the_gaussian_are_those_that_the_job_measured(service: Service, drawn: str) -> None:
    with zipfile.ZipFile(io.BytesIO(archive_bytes())) as archive:
        names = [name for name in archive.namelist() if name.startswith("val/")]
        images = [archive.read(name) for name in names]
    labels = [name.split("/")[1] for name in names]
    with service.client() as client:
        found = asked(client, drawn, images, "swag")
        again = asked(client, drawn, images, "swag")
        result = client.jobs.get(drawn).result
    assert result is not None
    assert result.metrics.swag is not None
    assert (found.network, found.draws, again.cached) == ("swag", 3, True)
    assert again.data == found.data, "the draws follow from the job's seed"
    right = [one.probabilities[found.classes.index(label)] for one, label in zip(found.data, labels, strict=True)]
    assert -np.log(right).mean() == pytest.approx(result.metrics.swag.loss, rel=1e-3)
    best = [one.top[0].label == label for one, label in zip(found.data, labels, strict=True)]
    assert np.mean(best) == pytest.approx(result.metrics.swag.accuracy)
    for one in found.data:
        assert one.deviations is not None
        assert min(one.deviations) >= 0
        assert one.top[0].deviation == one.deviations[found.classes.index(one.top[0].label)]
    assert max(max(one.deviations or ()) for one in found.data) > 1e-4


def test_a_job_without_swag_has_no_draws_to_ask(service: Service, job: str) -> None:
    with service.client() as client, pytest.raises(NoWeights, match="was not asked for"):
        client.jobs.predict(job, pictures(), network="swag")


def test_more_at_once_than_may_be_is_busy(service: Service, job: str) -> None:
    box, own = redis.Redis(unix_socket_path=str(service.broker.socket)), "wbar:predict:of:default"
    body = {"images": [base64.b64encode(pictures()[0]).decode()]}
    with service.http() as http:
        box.zadd(own, {f"other-{n}": time.time() for n in range(4)})
        answer = http.post(f"/v1/jobs/{job}/predict", json=body)
        assert (answer.status_code, answer.json()["code"]) == (429, "busy"), answer.text
        assert answer.headers["Retry-After"] == "2"
        # Those of an API that was killed are counted no more once their time is over.
        box.zadd(own, {f"other-{n}": time.time() - 61 for n in range(4)})
        assert http.post(f"/v1/jobs/{job}/predict", json=body).status_code == 200
    assert not box.keys("wbar:predict:*"), "nothing is kept"
    box.close()


def test_a_job_without_swag_says_so(service: Service, job: str, tmp_path: Path) -> None:
    with service.client() as client, pytest.raises(NoWeights, match="was not asked for"):
        client.jobs.download(job, tmp_path / "swag", which="swag")


def test_a_job_without_a_result_has_no_answers(service: Service, job: str) -> None:
    with service.client() as client:
        made = client.jobs.clone(job, method={"cycles": 300})
        with service.http() as http:
            good = {"images": [base64.b64encode(pictures()[0]).decode()]}
            refused(http, f"/v1/jobs/{made.id}/predict", 409, "job_not_finished", json=good)
            client.jobs.cancel(str(made.id))
            refused(http, f"/v1/jobs/{made.id}/predict", 409, "no_weights", json=good)


def children_of(pid: int) -> list[int]:
    """Every process below one."""
    own = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return own + [deeper for one in own for deeper in children_of(one)]


def stopped(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def test_the_network_that_was_not_asked_for_the_longest_makes_room(service: Service, drawn: str) -> None:
    with service.client() as client:

        def cached(network: str) -> bool:
            return client.jobs.predict(drawn, pictures(1), network=network).cached

        for network in ("averaged", "snapshot_1"):
            cached(network)
            assert cached(network)
        assert cached("averaged")
        assert not cached("snapshot_2"), "two stay loaded: snapshot_1, which waited longer, makes room"
        assert (cached("averaged"), cached("snapshot_2")) == (True, True)
        assert not cached("snapshot_1")
        assert cached("snapshot_2")
        assert not cached("averaged")


@pytest.mark.long
def test_busy_workers_are_said_to_be_busy_and_the_request_is_taken_back(breakable: Service, tmp_path: Path) -> None:
    breakable.start()
    job = made_job(breakable, tmp_path)
    body = {"images": [base64.b64encode(pictures()[0]).decode()]}
    box = redis.Redis(unix_socket_path=str(breakable.broker.socket))
    with breakable.http() as http:
        ingest = breakable.parts["ingest"].pid
        os.kill(ingest, signal.SIGSTOP)  # it takes nothing, and was seen lately: its slots are busy
        try:
            answer = http.post(f"/v1/jobs/{job}/predict", json=body)
        finally:
            os.kill(ingest, signal.SIGCONT)
        assert (answer.status_code, answer.json()["code"]) == (429, "busy"), answer.text
        assert "every worker was busy for 10 s" in answer.json()["detail"]
        assert answer.headers["Retry-After"] == "2"
        assert not box.keys("wbar:predict:*"), "no worker takes it later"
        assert http.post(f"/v1/jobs/{job}/predict", json=body).status_code == 200
    box.close()


@pytest.mark.long
def test_a_worker_that_is_killed_is_said_to_be_gone_and_the_next_call_works(breakable: Service, tmp_path: Path) -> None:
    breakable.start()
    job = made_job(breakable, tmp_path)
    body = {"images": [base64.b64encode(pictures()[0]).decode()]}
    with breakable.http() as http:
        first = http.post(f"/v1/jobs/{job}/predict", json=body)
        assert first.status_code == 200, first.text
        # The child is stopped, so that it has taken the request and does not answer when its worker is killed.
        ingest = breakable.parts["ingest"].pid
        for child in children_of(ingest):
            if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():
                for one in children_of(child):
                    stopped(one)
        answers = list[httpx.Response]()
        asking = Thread(target=lambda: answers.append(http.post(f"/v1/jobs/{job}/predict", json=body)))
        asking.start()
        box = redis.Redis(unix_socket_path=str(breakable.broker.socket))
        wait_until(
            lambda: box.keys("wbar:predict:alive:*") and not box.keys("wbar:predict:request:*"), 20, "the worker"
        )
        breakable.signal("ingest", signal.SIGKILL)
        asking.join(60)
        assert answers[0].status_code == 503, answers[0].text
        assert "has ended" in answers[0].json()["detail"]
        assert answers[0].headers["Retry-After"] == "1"
        assert not box.keys("wbar:predict:*"), "nothing is kept"
        nobody = http.post(f"/v1/jobs/{job}/predict", json=body)
        assert nobody.status_code in (429, 503), nobody.text
        breakable.start("ingest")
        again = http.post(f"/v1/jobs/{job}/predict", json=body)
        while again.status_code in (429, 503):  # it starts
            again = http.post(f"/v1/jobs/{job}/predict", json=body)
        assert again.json()["data"] == first.json()["data"]


@pytest.mark.parametrize(("bytes_", "draws"), [(45_000_000, 20), (346_000_000, 6), (9_000_000_000, 1)])
def test_of_large_networks_as_many_are_drawn_as_there_is_time_for(bytes_: int, draws: int) -> None:
    ended = result()
    weights = ended.weights.model_copy(update={"bytes": bytes_})
    assert _draws(spec(swag=30), ended.model_copy(update={"weights": weights})) == draws
