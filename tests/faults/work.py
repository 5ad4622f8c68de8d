"""The work of a trial: one small job, and the same job undisturbed, which every disturbed one must equal."""

import hashlib
import io
import time
import zipfile
from dataclasses import dataclass
from typing import Any

from tests.faults.house import House
from tests.material import archive_bytes, start_state, write_archive, write_start
from wbar.states import TERMINAL
from wbar_averaging import write_safetensors

METHOD = {"cycles": 2, "high": {"lr": 0.02, "epochs": 6}, "low": {"lr": 0.002, "epochs": 6}}
RECIPE = {"batch_size": 16}
# Activations of some megabytes, so that an allocation asks the system for memory.
LARGE = {"batch_size": 32, "image_size": 32}
METHOD_OF_LARGE = {"cycles": 2, "high": {"lr": 0.02, "epochs": 1}, "low": {"lr": 0.002, "epochs": 1}}


@dataclass(frozen=True)
class Inputs:
    """A ready checkpoint and dataset."""

    checkpoint: str
    dataset: str

    def body(self, large: bool = False, **recipe: object) -> dict[str, Any]:
        """Return the request of the job. large: one that needs memory."""
        made = (LARGE if large else RECIPE) | recipe
        method = METHOD_OF_LARGE if large else METHOD
        return {"checkpoint": self.checkpoint, "dataset": self.dataset, "method": method, "recipe": made}


@dataclass(frozen=True)
class Ended:
    """Everything about an ended job that must not depend on what disturbed it. seconds: from its claim to its end."""

    weights: str
    pytorch: str
    result: dict[str, Any]
    metrics: list[dict[str, Any]]
    snapshots: list[tuple[int, int, str]]
    seconds: float


def upload(house: House) -> Inputs:
    """Upload both inputs and wait until they are ready."""
    checkpoint = house.ask("POST", "/v1/checkpoints", content=write_start(house.folder).read_bytes()).json()["id"]
    dataset = house.ask("POST", "/v1/datasets", content=write_archive(house.folder).read_bytes()).json()["id"]
    for kind, one in (("checkpoints", checkpoint), ("datasets", dataset)):
        found = wait_for(house, f"/v1/{kind}/{one}", ("ready", "rejected"), 120)
        assert found["status"] == "ready", found
    return Inputs(checkpoint, dataset)


def another_upload(house: House, kind: str, name: str) -> bytes:
    """Return a checkpoint with the start's tensors, or a dataset with the jobs' images, whose bytes no other file has."""
    if kind == "dataset":
        out = io.BytesIO(archive_bytes())
        with zipfile.ZipFile(out, "a") as archive:
            archive.comment = f"trial {house.mark} {name}".encode()
        return out.getvalue()
    path = house.folder / f"{name}.safetensors"
    write_safetensors(path, start_state(), {"trial": f"{house.mark} {name}"})
    content = path.read_bytes()
    path.unlink()
    return content


def wait_for(house: House, path: str, statuses: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """Poll an object until it has one of these statuses, bounded in time; returns it as it was at last."""
    deadline = time.monotonic() + seconds
    while True:
        found: dict[str, Any] = house.ask("GET", path, seconds=seconds).json()
        if found.get("status") in statuses or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def wait_for_end(house: House, job: str, seconds: float = 150.0) -> dict[str, Any]:
    """Poll a job until it has ended, bounded in time."""
    return wait_for(house, f"/v1/jobs/{job}", tuple(TERMINAL), seconds)


def undisturbed(house: House, body: dict[str, Any]) -> Ended:
    """Run the job once without a fault."""
    job = house.ask("POST", "/v1/jobs", json=body).json()["id"]
    ended = wait_for_end(house, job)
    assert ended["status"] == "succeeded", ended
    return collect(house, job)


def collect(house: House, job: str) -> Ended:
    """Read what a job that succeeded made; the weights are downloaded and digested."""
    found = house.ask("GET", f"/v1/jobs/{job}").json()
    times = house.sql("SELECT finished_at - started_at FROM jobs WHERE id = :job", job=job)
    return Ended(
        weights=_digest(house, f"/v1/jobs/{job}/weights"),
        pytorch=_digest(house, f"/v1/jobs/{job}/weights?format=pytorch"),
        result=found["result"],
        metrics=metrics_of(house, job),
        snapshots=snapshots_of(house, job),
        seconds=float(str(times[0][0])),
    )


def metrics_of(house: House, job: str) -> list[dict[str, Any]]:
    """Return the series without what depends on the machine's load."""
    points = house.ask("GET", f"/v1/jobs/{job}/metrics").json()["data"]
    return [{name: value for name, value in point.items() if name != "images_per_second"} for point in points]


def snapshots_of(house: House, job: str) -> list[tuple[int, int, str]]:
    """Return number, step and downloaded digest of every snapshot."""
    listed = house.ask("GET", f"/v1/jobs/{job}/snapshots?limit=100").json()["data"]
    return [(one["n"], one["step"], _digest(house, f"/v1/jobs/{job}/snapshots/{one['n']}/weights")) for one in listed]


def events_of(house: House, job: str) -> list[dict[str, Any]]:
    """Return the whole event log."""
    events: list[dict[str, Any]] = []
    while True:
        after = f"&after={events[-1]['id']}" if events else ""
        page = house.ask("GET", f"/v1/jobs/{job}/events?limit=100{after}").json()
        events += page["data"]
        if not page["has_more"]:
            return events


def _digest(house: House, path: str) -> str:
    answer = house.ask("GET", path)
    return hashlib.sha256(answer.content).hexdigest() if answer.status_code == 200 else f"HTTP {answer.status_code}"
