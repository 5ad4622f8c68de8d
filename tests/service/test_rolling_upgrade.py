"""A rolling upgrade: workers and sweepers of versions before go on with an API and a database of this one."""

import io
import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import Service, wait_until
from tests.material import write_archive, write_start
from tests.receivers import receiver
from wbar import Client, __version__
from wbar.checkpoints import Checkpoint
from wbar.datasets import Dataset
from wbar.jobs import Job
from wbar_store import blob_guard
from wbar_store.blobs import Blobs

ROOT = Path(__file__).parents[2]
OF_0_5, OF_0_6 = "2fc84475e6", "45deff6612"  # the last commit of each
FOLDERS = ("", "averaging", "training", "store", "worker")


def source(commit: str, folder: Path) -> str:
    """The PYTHONPATH of a version before, from this repository's history."""
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
    if packed.returncode != 0:
        pytest.skip("the history of this repository is not here")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder / commit, filter="data")
    return os.pathsep.join(str(folder / commit / part) for part in FOLDERS)


def ended(client: Client, job: Job) -> Job:
    """The job, once it has succeeded."""
    assert job.id is not None
    done = client.jobs.wait(job.id, timeout=180)
    assert done.status == "succeeded", done.error
    return done


def another(client: Client, checkpoint: Checkpoint, dataset: Dataset, priority: int = 0) -> Job:
    """A small job of these."""
    return client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, method={"cycles": 2}, priority=priority)


def weights(client: Client, job: Job, path: Path) -> dict[str, object]:
    """The job's averaged weights; the path keeps the file."""
    assert job.id is not None
    client.jobs.download(job.id, path)
    return {name: tensor.tolist() for name, tensor in load_file(path).items()}


def made_by(path: Path, version: str) -> bool:
    return f'wbar.version":"{version}' in str(path.read_bytes()[:20_000])


@pytest.mark.long
def test_old_workers_serve_a_new_api(breakable: Service, tmp_path: Path) -> None:
    """Old workers validate and train what a new API took; a new worker, beside them, makes the same weights."""
    new = breakable.environment
    breakable.start("api", "sweep")
    breakable.environment = new | {"PYTHONPATH": source(OF_0_5, tmp_path)}
    breakable.start("train", "ingest")
    breakable.environment = new
    with breakable.client() as client:
        checkpoint = client.checkpoints.create(write_start(tmp_path))
        dataset = client.datasets.create(write_archive(tmp_path))
        old = weights(client, ended(client, another(client, checkpoint, dataset)), tmp_path / "old")
        assert made_by(tmp_path / "old", "0.5.")
        with breakable.database.read() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM workers").scalar() == 2
        breakable.signal("train", signal.SIGTERM)
        breakable.start("train")
        assert weights(client, ended(client, another(client, checkpoint, dataset)), tmp_path / "new") == old
        assert made_by(tmp_path / "new", __version__)


def unused_blob(blobs: Blobs) -> Path:
    """The file of a blob that nothing needs: a sweeper that tidies up deletes it."""
    upload = blobs.receive()
    upload.write(os.urandom(100))
    with blobs.keep(upload.finish()) as sha256:
        assert blobs.root is not None
        return blobs.root / blobs.path(sha256)


@pytest.mark.long
def test_workers_and_a_sweeper_of_0_6_beside_todays_api(breakable: Service, tmp_path: Path) -> None:
    """The sweeper keeps samples and losses, which it does not know; what the old do not tell webhooks, nobody does."""
    new = breakable.environment | {"WBAR_WEBHOOKS_ALLOW": '["127.0.0.0/8"]'}
    old = new | {"PYTHONPATH": source(OF_0_6, tmp_path)}
    # Its first look tidies up, on a machine that has been up for ten minutes.
    patience = max(60.0, 660.0 - time.monotonic())
    breakable.environment = new
    breakable.start("api", "train", "ingest")
    with breakable.client() as client, breakable.http() as http, receiver() as there:
        hook = http.post("/v1/webhooks", json={"url": there.url, "events": ["job.*"]}).json()
        checkpoint = client.checkpoints.create(write_start(tmp_path))
        dataset = client.datasets.create(write_archive(tmp_path))
        first = ended(client, another(client, checkpoint, dataset))
        same = weights(client, first, tmp_path / "today")
        of_today = [f"/v1/datasets/{dataset.id}/samples", f"/v1/jobs/{first.id}/losses"]
        assert [http.get(path).status_code for path in of_today] == [200, 200]
        for name in ("train", "ingest"):
            breakable.signal(name, signal.SIGTERM)

        # All of 0.6, but for the API.
        unused = unused_blob(Blobs(new["WBAR_BLOBS_URL"], breakable.database))
        breakable.environment = old
        jobs = [another(client, checkpoint, dataset, priority) for priority in (0, 0, 5)]
        breakable.start("train", "ingest", "sweep")
        wait_until(lambda: not unused.exists(), patience, "the old sweeper's tidying up")
        done = [ended(client, job) for job in jobs]
        assert weights(client, done[-1], tmp_path / "old") == same
        assert made_by(tmp_path / "old", "0.6.")
        assert sorted(done, key=lambda job: str(job.started_at)) == done, "0.6 knows no priorities"
        assert http.get(f"/v1/jobs/{done[0].id}/losses").status_code == 409  # no result of that kind
        again = client.datasets.create(tmp_path / "digits.zip")
        assert http.get(f"/v1/datasets/{again.id}/samples").status_code == 404
        assert [http.get(path).status_code for path in of_today] == [200, 200]

        # The old worker dies in the middle of a job: the old sweeper notifies, a worker of today makes the same of it.
        job = another(client, checkpoint, dataset)
        assert job.id is not None
        wait_until(lambda: client.jobs.get(str(job.id)).status == "running", 60, "the old worker's claim")
        breakable.signal("train", signal.SIGKILL)
        breakable.environment = new
        breakable.start("train")
        assert weights(client, ended(client, job), tmp_path / "resumed") == same
        assert made_by(tmp_path / "resumed", __version__)

        # What webhooks are told of: everything that today's version did, and nothing that 0.6 did.
        breakable.signal("sweep", signal.SIGTERM)
        breakable.start("sweep")
        told = [one.event(hook["secret"]) for one in there.wait_for(3 + 3 + 1 + 2, 60)]
        assert sorted((event.data.id, event.type) for event in told) == sorted(
            [(str(first.id), f"job.{status}") for status in ("queued", "running", "succeeded")]
            + [(str(one.id), "job.queued") for one in done]
            + [(job.id, f"job.{status}") for status in ("queued", "running", "succeeded")]
        )

        # It is the database's guard that keeps them: without it they go.
        breakable.signal("sweep", signal.SIGTERM)
        with breakable.database.migrating() as connection:
            blob_guard.remove(connection)
        breakable.environment = old
        breakable.start("sweep")
        wait_until(lambda: [http.get(path).status_code for path in of_today] != [200, 200], patience, "the old sweeper")
