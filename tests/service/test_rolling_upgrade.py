"""A rolling upgrade: workers of the version before go on with an API and a database of this one."""

import io
import os
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import Service
from tests.material import write_archive, write_start

ROOT = Path(__file__).parents[2]
BEFORE = "2fc84475e6"  # the last commit of 0.5.0
FOLDERS = ("", "averaging", "training", "store", "worker")


@pytest.fixture(scope="module")
def version_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the version before, from this repository's history."""
    packed = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True)
    if packed.returncode != 0:
        pytest.skip("the history of this repository is not here")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.long
def test_old_workers_serve_a_new_api(breakable: Service, version_before: Path, tmp_path: Path) -> None:
    """Old workers validate and train what a new API took; a new worker, beside them, makes the same weights."""
    new = breakable.environment
    breakable.start("api", "sweep")
    breakable.environment = new | {"PYTHONPATH": os.pathsep.join(str(version_before / folder) for folder in FOLDERS)}
    breakable.start("train", "ingest")
    breakable.environment = new
    with breakable.client() as client:
        checkpoint = client.checkpoints.create(write_start(tmp_path))
        dataset = client.datasets.create(write_archive(tmp_path))

        def weights(name: str) -> dict[str, object]:
            job = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, method={"cycles": 2})
            assert job.id is not None
            done = client.jobs.wait(job.id, timeout=180)
            assert done.status == "succeeded", done.error
            path = client.jobs.download(job.id, tmp_path / name)
            return {name: tensor.tolist() for name, tensor in load_file(path).items()}

        old = weights("old")
        assert "0.5." in str((tmp_path / "old").read_bytes()[:20_000])  # wbar.version of who made it
        with breakable.database.read() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM workers").scalar() == 2
        breakable.signal("train", signal.SIGTERM)
        breakable.start("train")
        assert weights("new") == old
        assert "0.6." in str((tmp_path / "new").read_bytes()[:20_000])
