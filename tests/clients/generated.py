"""What every generated client has to do against a real service, each in its own language: see flows/.

A flow gets the service's address, a key, a checkpoint to upload and a file to write. It uploads the checkpoint, names a
dataset, polls both, creates a job with a method of its own choice and with null or nothing for the rest, polls it, and
downloads the averaged weights.
"""

import json
import os
import subprocess
from pathlib import Path

from safetensors import safe_open

from tests.conftest import Service
from tests.material import start_state, write_start

FLOWS = Path(__file__).with_name("flows")
SECONDS = 240


def write_schema(service: Service, folder: Path) -> Path:
    """The schema as the service sends it."""
    path = folder / "openapi.json"
    with service.http(None) as http:
        path.write_bytes(http.get("/openapi.json").content)
    return path


def generate(command: list[str], folder: Path) -> None:
    """Run a generator, an installer or a compiler; it must not fail."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


def run_flow(command: list[str], service: Service, folder: Path, python_path: Path | None = None) -> None:
    """Run a flow and check what it downloaded, and that the job it made is the one it asked for."""
    weights = folder / "averaged.safetensors"
    environment = dict(os.environ)
    if python_path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(python_path), *environment.get("PYTHONPATH", "").split(":")])
    arguments = [service.url, service.key, str(write_start(folder)), str(weights)]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    job_id = json.loads(done.stdout.splitlines()[-1])["job"]
    with service.client() as client:
        job = client.jobs.get(job_id)
    assert job.status == "succeeded"
    assert job.result is not None
    assert weights.stat().st_size == job.result.weights.bytes
    assert (job.method.type, job.method.cycles) == ("cyclic_swa", 1)
    assert job.recipe.optimizer.betas == (0.8, 0.9)
    with safe_open(weights, "pt") as file:
        assert set(file.keys()) == set(start_state())
