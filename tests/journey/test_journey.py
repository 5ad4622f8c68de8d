"""The whole path on a tiny dataset: upload, submit, follow, download, and check every claim with the reference twins."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.averaging import reference
from tests.conftest import Service, wait_until
from tests.material import start_state, write_archive, write_start
from wbar.client import Client
from wbar.jobs import Job
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.data.augment import Preparer
from wbar_training.data.packed import load_split
from wbar_training.draws import permutation
from wbar_training.evaluate import even_slices, forward_batch
from wbar_training.evaluator import BATCH_NORM_IMAGES
from wbar_training.networks.architectures import initialized, load
from wbar_training.uploads.dataset_archives import pack_archive
from wbar_training.uploads.limits import UploadLimits

METHOD = {"cycles": 3, "high": {"lr": 0.02, "epochs": 1}, "low": {"lr": 0.002, "epochs": 1}, "pull": 0.001}


def submit(client: Client, folder: Path, **fields: object) -> Job:
    checkpoint = client.checkpoints.create(write_start(folder, prefix="module."))
    dataset = client.datasets.create(write_archive(folder))
    return client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, **{"method": METHOD, "seed": 5, **fields})


def test_the_whole_path(service: Service, tmp_path: Path) -> None:
    with service.client() as client:
        job = submit(client, tmp_path, name="journey", metadata={"team": "vision"})
        assert job.status == "queued"
        seen = list(client.jobs.events(job.id))
        job = client.jobs.get(job.id)
        assert job.status == "succeeded", job.error
        check_events(client, job, seen)
        weights = client.jobs.download(job.id, tmp_path / "averaged.safetensors")
        pytorch = client.jobs.download(job.id, tmp_path / "averaged.pth", format="pytorch")
        snapshots = client.jobs.snapshots(job.id)
        assert [found.n for found in snapshots] == [1, 2, 3]
        files = [client.jobs.download_snapshot(job.id, n, tmp_path / f"w{n}.safetensors") for n in (1, 2, 3)]
        points = client.jobs.metrics(job.id)
        assert client.jobs.list(metadata={"team": "vision"}, limit=100).data[0].id == job.id
    assert points[-1].step == job.progress.total_steps == 3 * 2 * 15
    averaged, members = load_file(weights), [load_file(path) for path in files]
    expected = reference.mean_of(members)
    model, _ = load(Network("resnet20", 10), {name.removeprefix("module."): t for name, t in averaged.items()})
    for name, _ in model.named_parameters():
        assert torch.equal(averaged[f"module.{name}"], expected[f"module.{name}"].float()), name
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in torch.load(pytorch, weights_only=True).items())
    check_batch_norm(job, model, averaged, tmp_path)
    check_accuracy_with_the_metadata_alone(job, weights, tmp_path)
    check_result(job, weights)
    check_report(service, job)


def check_events(client: Client, job: Job, seen: list) -> None:
    ids = [event.id for event in seen]
    assert ids == sorted(set(ids))
    assert {event.type for event in seen} >= {"status", "progress", "metrics", "snapshot"}
    assert [event.data["status"] for event in seen if event.type == "status"] == ["queued", "running", "succeeded"]
    assert [event.data["n"] for event in seen if event.type == "snapshot"] == [1, 2, 3]
    middle = ids[len(ids) // 2]
    again = list(client.jobs.events(job.id, after=middle))
    assert [event.id for event in again] == ids[ids.index(middle) + 1 :]
    assert list(client.jobs.events(job.id, after=ids[-1])) == []
    page = client.jobs.event_list(job.id, limit=3)
    assert [event.id for event in page.data] == ids[:3]
    assert page.has_more


def check_batch_norm(job: Job, model: torch.nn.Module, averaged: dict[str, torch.Tensor], folder: Path) -> None:
    """The buffers are the pooled statistics over the job's own augmented training images."""
    recipe = job.recipe
    pack_archive(folder / "digits.zip", folder / "packed", UploadLimits())
    train = load_split(folder / "packed", "train", tuple(recipe.image_size), None)
    normalize = recipe.normalize
    prepare = Preparer(tuple(normalize.mean), tuple(normalize.std), recipe.augment, job.seed, torch.device("cpu"))
    drawn = permutation(len(train), job.seed, "batchnorm")[:BATCH_NORM_IMAGES]
    parts = enumerate(even_slices(len(drawn), forward_batch(tuple(recipe.image_size))))
    batches = [prepare.augmented(train.images[drawn[part]], "batchnorm-augment", index) for index, part in parts]
    for name, (mean, variance) in reference.batch_norm_statistics(model, batches).items():
        found = averaged[f"module.{name}.running_mean"], averaged[f"module.{name}.running_var"]
        torch.testing.assert_close(found[0].double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[1].double(), variance, rtol=1e-4, atol=1e-5)


def check_accuracy_with_the_metadata_alone(job: Job, weights: Path, folder: Path) -> None:
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
    channels, height, width = json.loads(metadata["wbar.image_size"])
    normalize = json.loads(metadata["wbar.normalize"])
    model = initialized(Network(metadata["wbar.architecture"], int(metadata["wbar.num_classes"])))
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in load_file(weights).items()})
    held_out = load_split(folder / "packed", "val", (height, width), None)
    mean, std = (torch.tensor(normalize[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        logits = model.eval()(((held_out.images.float() / 255).expand(-1, channels, -1, -1) - mean) / std)
    accuracy = (logits.argmax(1) == held_out.labels).double().mean().item()
    loss = torch.nn.functional.cross_entropy(logits, held_out.labels).item()
    assert accuracy == pytest.approx(job.result.metrics.averaged.accuracy)
    assert loss == pytest.approx(job.result.metrics.averaged.loss, rel=1e-4)
    assert json.loads(metadata["wbar.classes"]) == list("0123456789")
    assert metadata["wbar.snapshots"] == "3"
    assert not [value for value in metadata.values() if job.id in value]


def check_result(job: Job, weights: Path) -> None:
    result = job.result
    assert result.weights.bytes == weights.stat().st_size
    assert [point.n for point in result.curve] == [1, 2, 3]
    assert result.curve[-1].loss == result.metrics.averaged.loss
    assert result.verdict in ("better", "same", "worse")
    assert job.progress.fraction == 1.0
    assert job.attempts == 1


def check_report(service: Service, job: Job) -> None:
    with service.http() as http:
        page = http.get(f"/v1/jobs/{job.id}/report")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "sandbox" in page.headers["content-security-policy"]
    assert "journey" in page.text
    assert f"Verdict: {job.result.verdict}" in page.text
    assert f"{job.result.metrics.averaged.loss:.4f}" in page.text
    assert "Plotly.newPlot" in page.text
    assert "src=" not in page.text.split("<body>")[1]  # nothing is fetched


@pytest.mark.long
def test_a_job_measures_flatness_and_swag_where_it_is_asked_to(service: Service, tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        asked = submit(client, tmp_path, name="<script>alert(1)</script>", flatness=True, swag=2)
        early = http.get(f"/v1/jobs/{asked.id}/report")
        assert (early.status_code, early.json()["code"]) == (409, "job_not_finished")
        job = client.jobs.wait(asked.id, timeout=120)
        page = http.get(f"/v1/jobs/{asked.id}/report").text
    assert job.status == "succeeded", job.error
    assert job.result.metrics.swag.loss > 0
    assert job.result.flatness.distance > 0
    assert len(job.result.flatness.epochs) == 6
    assert "<script>alert(1)</script>" not in page
    assert "How flat it is" in page


def test_a_soup_of_checkpoints(service: Service, tmp_path: Path) -> None:
    states = [
        start_state(),
        {name: tensor * 1.01 if tensor.dim() > 1 else tensor for name, tensor in start_state().items()},
    ]
    with service.client() as client, service.http() as http:
        ids = []
        for n, state in enumerate(states):
            write_safetensors(tmp_path / f"{n}.safetensors", state, {})
            ids.append(client.checkpoints.create(tmp_path / f"{n}.safetensors").id)
        dataset = client.datasets.create(write_archive(tmp_path)).id
        five = dict(start_state())
        five["fc.weight"], five["fc.bias"] = five["fc.weight"][:5], five["fc.bias"][:5]
        write_safetensors(tmp_path / "five.safetensors", five, {})
        other = client.checkpoints.create(tmp_path / "five.safetensors").id
        for method, status, code in (
            ({"type": "soup", "checkpoints": [ids[0], other]}, 422, "checkpoints_differ"),
            ({"type": "soup", "checkpoints": [ids[0], "ckpt_none"]}, 404, "not_found"),
            ({"type": "soup", "checkpoints": [ids[0], ids[0]]}, 422, "validation_failed"),
            ({"type": "stew"}, 422, "validation_failed"),
        ):
            answer = http.post("/v1/jobs", json={"checkpoint": ids[0], "dataset": dataset, "method": method})
            assert (answer.status_code, answer.json()["code"]) == (status, code)
        soup = {"type": "soup", "checkpoints": ids}
        refused = http.post("/v1/jobs", json={"checkpoint": ids[0], "dataset": dataset, "method": soup, "swag": 2})
        assert (refused.status_code, refused.json()["code"]) == (422, "validation_failed")
        job = client.jobs.wait(client.jobs.create(checkpoint=ids[0], dataset=dataset, method=soup).id, timeout=120)
        assert job.status == "succeeded", job.error
        assert job.result.selection is None, "nothing was chosen: all of them are in it"
        found = load_file(client.jobs.download(job.id, tmp_path / "soup.safetensors"))
        expected = reference.mean_of(states)
        assert torch.equal(found["layer1.0.conv1.weight"], expected["layer1.0.conv1.weight"].float())
        assert client.jobs.snapshots(job.id) == []
        client.checkpoints.delete(ids[1])  # an ended job needs it no more


@pytest.mark.long
def test_a_checkpoint_that_a_soup_needs_cannot_be_deleted(breakable: Service, tmp_path: Path) -> None:
    breakable.start()
    with breakable.client() as client, breakable.http() as http:
        ids = [client.checkpoints.create(write_start(tmp_path, prefix=prefix)).id for prefix in ("", "module.")]
        dataset = client.datasets.create(write_archive(tmp_path)).id
        breakable.signal("train", signal.SIGKILL)
        job = client.jobs.create(checkpoint=ids[0], dataset=dataset, method={"type": "soup", "checkpoints": ids})
        answer = http.delete(f"/v1/checkpoints/{ids[1]}")
        assert (answer.status_code, answer.json()["code"]) == (409, "in_use")
        client.jobs.cancel(job.id)
        assert http.delete(f"/v1/checkpoints/{ids[1]}").status_code == 200


def test_a_killed_worker_changes_nothing_in_the_weights(breakable: Service, tmp_path: Path) -> None:
    """kill -9 of the worker process in the middle of a job: the same final bytes as an undisturbed run."""
    breakable.start()
    with breakable.client() as client:
        first = client.jobs.wait(submit(client, tmp_path, method=METHOD | {"cycles": 4}).id, timeout=120)
        assert first.status == "succeeded"
        job = submit(client, tmp_path, method=METHOD | {"cycles": 4})
        wait_until(lambda: (client.jobs.get(job.id).progress or Nowhere).step >= 40, 60, "the middle of the job")
        breakable.signal("train", signal.SIGKILL)
        assert client.jobs.get(job.id).status == "running"
        breakable.start("train")
        second = client.jobs.wait(job.id, timeout=120)
        assert second.status == "succeeded", second.error
        assert second.attempts == 2
        assert second.result.weights.sha256 == first.result.weights.sha256
        digests = [[s.sha256 for s in client.jobs.snapshots(found.id)] for found in (first, second)]
        assert digests[0] == digests[1]
        log = [event for event in client.jobs.events(job.id) if event.type == "log"]
        assert any("went on from step" in event.data["message"] for event in log)
        assert [e.data["n"] for e in client.jobs.events(job.id) if e.type == "snapshot"] == [1, 2, 3, 4]


class Nowhere:
    step = -1
