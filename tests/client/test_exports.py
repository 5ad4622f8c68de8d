"""A job in the hands of other tools: each reads with its own reader what was exported."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from tests.client.test_cli import wbar
from tests.conftest import Service, wait_until
from tests.material import write_archive, write_start
from wbar.client import Client
from wbar.exports import commands
from wbar.exports.mlflow import parameters
from wbar.exports.series import TRAINING, Place, Sample, looks
from wbar.exports.tensorboard import EventFiles
from wbar.jobs import Job, MetricsPoint

METHOD = {"cycles": 2, "high": {"lr": 0.02}, "low": {"lr": 0.002}}


def submitted(client: Client, folder: Path, cycles: int = 2) -> str:
    checkpoint = client.checkpoints.create(write_start(folder))
    dataset = client.datasets.create(write_archive(folder))
    method = {**METHOD, "cycles": cycles}
    job = client.jobs.create(
        checkpoint=checkpoint.id, dataset=dataset.id, method=method, name="exported", metadata={"a": "b"}
    )
    assert job.id is not None
    return job.id


@pytest.fixture(scope="module")
def ended(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Job:
    with service.client() as client:
        job = client.jobs.wait(submitted(client, tmp_path_factory.mktemp("exported")), 120)
    assert job.result is not None
    return job


def read_by_tensorboard(folder: Path) -> dict[Place, list[float]]:
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    accumulator.Reload()
    found: dict[Place, list[float]] = {}
    for tag in accumulator.Tags()["tensors"]:
        for event in accumulator.Tensors(tag):
            found.setdefault((tag, event.step), []).append(event.tensor_proto.float_val[0])
    for tag in accumulator.Tags()["scalars"]:
        for event in accumulator.Scalars(tag):
            found.setdefault((tag, event.step), []).append(event.value)
    return found


def once(samples: list[Sample]) -> dict[Place, list[float]]:
    return {one.place: [float(np.float32(one.value))] for one in samples}


def everything(client: Client, job: str) -> list[Sample]:
    (look,) = looks(client, job, follow=False)
    return look.samples


def test_the_samples_are_the_jobs_numbers(service: Service, ended: Job) -> None:
    assert ended.id is not None
    assert ended.result is not None
    with service.client() as client:
        found = {one.place: one for one in everything(client, ended.id)}
        points, snapshots = client.jobs.metrics(ended.id), client.jobs.snapshots(ended.id)
    for point in points:
        for name in TRAINING:
            value = getattr(point, name)
            assert value == (found[f"train/{name}", point.step].value if value is not None else None)
    for snapshot in snapshots:
        assert found["snapshot/loss", snapshot.step].value == snapshot.metrics.loss
    for entry in ended.result.curve:
        assert found["averaged/accuracy", entry.n].value == entry.accuracy
    last = points[-1].step
    assert found["comparison/ensemble/loss", last].value == ended.result.metrics.ensemble.loss
    times = [found["train/loss", point.step].at for point in points]
    assert times == sorted(times)


def test_tensorboard_reads_every_number_once(service: Service, ended: Job, tmp_path: Path) -> None:
    assert ended.id is not None
    folder = tmp_path / "board"
    done = wbar(service, "export", "tensorboard", ended.id, "--logdir", str(folder))
    assert (done.returncode, done.stdout) == (0, f"{folder}\n"), done.stderr
    with service.client() as client:
        samples = everything(client, ended.id)
    assert read_by_tensorboard(folder) == once(samples)
    with EventFiles(folder, ended.id) as files:
        assert files.write(samples) == 0
    assert read_by_tensorboard(folder) == once(samples)


SAMPLES = [Sample("train/loss", step, 1.0 / step, 1.7e9 + step) for step in range(1, 50)]


def test_a_record_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    with EventFiles(tmp_path, "job_1") as files:
        assert files.write(SAMPLES[:30]) == 30
    (path,) = tmp_path.glob("*tfevents*")
    path.write_bytes(path.read_bytes()[:-7])
    with EventFiles(tmp_path, "job_1") as files:
        assert files.write(SAMPLES) == 20
    assert read_by_tensorboard(tmp_path) == once(SAMPLES)


def test_numbers_of_a_run_that_started_over_are_dropped(tmp_path: Path) -> None:
    with EventFiles(tmp_path, "job_1") as files:
        files.write(SAMPLES)
    again = [replace(one, value=one.value + 1) for one in SAMPLES[:10]]
    with EventFiles(tmp_path, "job_1") as files:
        assert files.write(again) == 10
    assert read_by_tensorboard(tmp_path) == once(again)
    with EventFiles(tmp_path, "job_1") as files:
        assert files.write(again) == 0


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with EventFiles(tmp_path, "job_1"):
        pass
    with pytest.raises(ValueError, match="job_1: give job_2 another --logdir"):
        EventFiles(tmp_path, "job_2")
    (tmp_path / "wbar-job").unlink()
    with pytest.raises(ValueError, match="another program"):
        EventFiles(tmp_path, "job_2")


def test_csv_and_parquet_have_the_series(service: Service, ended: Job, tmp_path: Path) -> None:
    assert ended.id is not None
    out = tmp_path / "series.csv"
    assert wbar(service, "export", "csv", ended.id, "-o", str(out)).returncode == 0
    with service.client() as client:
        points = [point.model_dump() for point in client.jobs.metrics(ended.id)]
    header, *lines = out.read_text().splitlines()
    assert header.split(",") == list(MetricsPoint.model_fields)
    assert len(lines) == len(points)
    out = tmp_path / "series.parquet"
    assert wbar(service, "export", "parquet", ended.id, "-o", str(out)).returncode == 0
    table = pyarrow.parquet.read_table(out)
    assert table.to_pylist() == points
    assert [str(table.schema.field(name).type) for name in ("step", "phase", "loss")] == ["int64", "string", "double"]
    assert json.loads(table.schema.metadata[b"wbar.job"])["id"] == ended.id
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (("tensorboard", "job_1", "--logdir", "x"), "tensorboard", "tensorboard"),
        (("mlflow", "job_1"), "mlflow", "mlflow"),
        (("parquet", "job_1", "-o", "x"), "pyarrow", "parquet"),
    ],
)
def test_an_extra_that_is_missing_is_named(
    words: tuple[str, ...],
    package: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = CliRunner().invoke(commands.app, words)
    assert done.exit_code == 2
    assert f"needs {package}: pip install 'wbar[{extra}]'" in done.output


@pytest.mark.long
def test_tensorboard_follows_a_job_and_goes_on_after_a_kill(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "board"
    with service.client() as client:
        job = submitted(client, tmp_path, cycles=10)
        words = [
            sys.executable,
            "-P",
            "-m",
            "wbar.cli",
            "export",
            "tensorboard",
            job,
            "--logdir",
            str(folder),
            "--follow",
        ]
        known = {**os.environ, "WBAR_URL": service.url, "WBAR_API_KEY": service.key}
        first = subprocess.Popen(words, env=known, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: folder.exists() and read_by_tensorboard(folder), 60, "the first numbers")
        finally:
            first.send_signal(signal.SIGKILL)
            first.wait()
        running = client.jobs.get(job).status
        seen = read_by_tensorboard(folder)
        subprocess.run(words, env=known, check=True, capture_output=True, timeout=200)
        assert running == "running"
        assert client.jobs.get(job).status == "succeeded"
        samples = everything(client, job)
    assert 0 < len(seen) < len(samples)
    assert read_by_tensorboard(folder) == once(samples)


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on SQLite, in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = tmp_path / "mlflow"
    folder.mkdir()
    quiet = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
             "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts")],
            stdout=log, stderr=log, env=quiet, cwd=folder, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return httpx.get(f"{url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, 120, "the MLflow server")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def of_the_server(url: str, path: str, **body: object) -> Mapping[str, object]:
    """Ask by MLflow's REST interface, not by its client."""
    if body:
        answer = httpx.post(f"{url}/api/2.0/mlflow/{path}", json=body, timeout=30)
    else:
        answer = httpx.get(f"{url}/api/2.0/mlflow/{path}", timeout=30)
    assert answer.status_code == 200, answer.text
    found: Mapping[str, object] = answer.json()
    return found


@pytest.mark.long
def test_an_mlflow_server_has_parameters_metrics_files_and_a_model_that_predicts(
    service: Service, ended: Job, mlflow_server: str, tmp_path: Path
) -> None:
    assert ended.id is not None
    words = ["export", "mlflow", ended.id, "--tracking-uri", mlflow_server, "--register", "digits", "--follow"]
    done = wbar(service, *words)
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.strip()
    again = wbar(service, *words)
    assert (again.returncode, again.stdout.strip()) == (0, run_id), again.stderr
    assert "digits version 1" in again.stderr

    run = of_the_server(mlflow_server, f"runs/get?run_id={run_id}")["run"]
    assert run["info"]["status"] == "FINISHED"  # type: ignore[index]
    assert run["info"]["run_name"] == "exported"  # type: ignore[index]
    assert {one["key"]: one["value"] for one in run["data"]["params"]} == parameters(ended)  # type: ignore[index]
    tags = {one["key"]: one["value"] for one in run["data"]["tags"]}  # type: ignore[index]
    assert (tags["wbar.job"], tags["wbar.metadata.a"]) == (ended.id, "b")
    with service.client() as client:
        samples = everything(client, ended.id)
        weights = client.jobs.download(ended.id, tmp_path / "averaged.safetensors")
    found: dict[Place, list[float]] = {}
    for tag in {one.tag for one in samples}:
        history = of_the_server(mlflow_server, f"metrics/get-history?run_id={run_id}&metric_key={tag}")["metrics"]
        for one in history:  # type: ignore[attr-defined]
            found.setdefault((tag, int(one.get("step", 0))), []).append(one["value"])
    assert found == {one.place: [one.value] for one in samples}

    # In a process of its own: MLflow's client is not made for warnings as errors.
    code = f"""
import json, mlflow, numpy
mlflow.set_tracking_uri({mlflow_server!r})
images = numpy.linspace(0, 1, 2 * 3 * 8 * 8, dtype=numpy.float32).reshape(2, 3, 8, 8)
print(json.dumps(mlflow.pyfunc.load_model("models:/digits/1").predict(images).tolist()))
print(json.dumps(sorted(one.path for one in mlflow.MlflowClient().list_artifacts({run_id!r}))))
"""
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=200, cwd=tmp_path
    )
    assert loaded.returncode == 0, loaded.stderr
    predicted, listed = map(json.loads, loaded.stdout.splitlines()[-2:])
    assert listed == ["job.json", "model", "report.html"]
    torch.testing.assert_close(torch.tensor(predicted), expected(weights), rtol=1e-4, atol=1e-5)


def test_an_mlflow_server_that_is_away_is_said_in_a_sentence(service: Service, ended: Job) -> None:
    assert ended.id is not None
    words = ("export", "mlflow", ended.id, "--tracking-uri", "http://127.0.0.1:9")
    done = wbar(service, *words, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: MLflow: " in done.stderr
    assert "Traceback" not in done.stderr


def expected(weights: Path) -> torch.Tensor:
    """The logits by the weights and their metadata alone."""
    from safetensors import safe_open

    from wbar.spec import Network
    from wbar_training.networks.architectures import initialized

    with safe_open(weights, framework="pt") as file:
        normalize = json.loads(file.metadata()["wbar.normalize"])
    model = initialized(Network("resnet20", 10))
    model.load_state_dict(load_file(weights))
    images = torch.linspace(0, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    mean, std = (torch.tensor(normalize[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return model.eval()((images - mean) / std)
