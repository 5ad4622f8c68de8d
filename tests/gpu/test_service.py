"""`wbar up` on a machine with a GPU: upload, job, poll, download, and what the service says of its card."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from tests.averaging import reference
from tests.conftest import wait_until
from tests.gpu.conftest import CUBLAS
from tests.material import write_archive, write_start
from tests.service.test_embedded import Up
from wbar.config import read
from wbar.jobs import Job
from wbar.spec import Network
from wbar_training.data.packed import load_split
from wbar_training.networks.architectures import initialized
from wbar_training.uploads.dataset_archives import pack_archive
from wbar_training.uploads.limits import UploadLimits

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]

METHOD = {"cycles": 3, "high": {"lr": 0.02}, "low": {"lr": 0.002}, "pull": 0.001}


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Up]:
    for name in ("WBAR_URL", "WBAR_API_KEY", CUBLAS):
        monkeypatch.delenv(name, raising=False)
    made = Up(tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def test_one_command_finds_the_gpu_and_a_job_runs_on_it(
    up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = torch.cuda.is_available()  # `wbar up` takes the GPUs that there are
    up.start()
    wait_until(lambda: up.said("workers ready"), 120, "readiness")
    with up.client(monkeypatch) as client, keyed_http() as http:
        trains = next(one for one in http.get("/v1/workers").json()["data"] if one["queue"] == "train")
        assert trains["device"] == ("cuda" if on_gpu else "cpu")
        if on_gpu:
            check_card(trains["gpus"])
        checkpoint = client.checkpoints.create(write_start(tmp_path)).id
        dataset = client.datasets.create(write_archive(tmp_path)).id
        job = client.jobs.create(checkpoint=checkpoint, dataset=dataset, method=METHOD, seed=5)
        assert job.recipe.precision == ("bfloat16" if on_gpu else "float32"), "what auto became"
        done = client.jobs.wait(job.id, timeout=120)  # type: ignore[arg-type]
        assert done.status == "succeeded", done.error
        assert done.attempts == 1
        weights = client.jobs.download(job.id, tmp_path / "averaged.safetensors")  # type: ignore[arg-type]
        files = [client.jobs.download_snapshot(job.id, n, tmp_path / f"w{n}") for n in (1, 2, 3)]  # type: ignore[arg-type]
        points = client.jobs.metrics(job.id)  # type: ignore[arg-type]
        again = client.jobs.wait(
            client.jobs.create(checkpoint=checkpoint, dataset=dataset, method=METHOD, seed=5).id,  # type: ignore[arg-type]
            timeout=120,
        )
        says = {one["name"]: one["reproducible"] for one in http.get("/v1/architectures").json()["data"]}
    check_result(done)
    assert all(math.isfinite(point.loss) for point in points)
    assert again.result is not None
    assert done.result is not None
    assert again.result.weights.sha256 == done.result.weights.sha256, "the same inputs, the same bytes"
    averaged, members = load_file(weights), [load_file(path) for path in files]
    expected = reference.mean_of(members)
    model = initialized(Network(name="resnet20", num_classes=10))
    for name, _ in model.named_parameters():
        assert torch.equal(averaged[name], expected[name].float()), name
    check_accuracy(done, model, averaged, weights, tmp_path)
    assert (says["resnet18"], says["googlenet"]) == (True, False)
    assert up.stop() == 0


def keyed_http() -> httpx.Client:
    """Bare HTTP at the address and with the key of the client's configuration."""
    found = read()
    headers = {"Authorization": f"Bearer {found.api_key}"}
    return httpx.Client(base_url=found.url, headers=headers, timeout=60, trust_env=False)


def check_card(gpus: list[dict[str, int]]) -> None:
    """The worker's page shows the memory of each card, as CUDA itself says."""
    assert len(gpus) >= 1
    total = torch.cuda.get_device_properties(0).total_memory
    assert any(abs(gpu["total"] - total) < 0.05 * total for gpu in gpus), (gpus, total)
    assert all(0 <= gpu["used"] <= gpu["total"] for gpu in gpus)


def check_result(job: Job) -> None:
    assert job.result is not None
    metrics = job.result.metrics
    assert [point.n for point in job.result.curve] == [1, 2, 3]
    assert job.result.verdict in ("better", "same", "worse")
    for arm in (metrics.start, metrics.start_recomputed, metrics.last, metrics.averaged, metrics.ensemble):
        assert arm is not None
        assert 0 <= arm.accuracy <= 1
        assert math.isfinite(arm.loss)
    assert metrics.averaged.accuracy > 0.4, "far above chance, as on the CPU"


def check_accuracy(
    job: Job, model: torch.nn.Module, averaged: dict[str, torch.Tensor], weights: Path, folder: Path
) -> None:
    """The file, evaluated in float32 on the CPU, has the loss that the job reports, within bfloat16's error."""
    pack_archive(folder / "digits.zip", folder / "packed", UploadLimits())
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
    channels, height, width = json.loads(metadata["wbar.image_size"])
    normalize = json.loads(metadata["wbar.normalize"])
    mean, std = (torch.tensor(normalize[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    model.load_state_dict(averaged)
    held_out = load_split(folder / "packed", "val", (height, width), None)
    with torch.no_grad():
        logits = model.eval()(((held_out.images.float() / 255).expand(-1, channels, -1, -1) - mean) / std)
    assert job.result is not None
    accuracy = (logits.argmax(1) == held_out.labels).double().mean().item()
    assert accuracy == pytest.approx(job.result.metrics.averaged.accuracy, abs=0.06)
    reported = job.result.metrics.averaged.loss
    assert F.cross_entropy(logits, held_out.labels).item() == pytest.approx(reported, rel=0.08)
