"""Every line that the service logs is JSON, and carries what it belongs to: request, tenant, job or upload, attempt."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Service, wait_until
from tests.material import write_archive, write_start
from tests.worker.test_recovery import LONG, training_processes
from wbar_store import logs

CELERYS = {"", "worker: Warm shutdown (MainProcess)"}  # to standard output, where no log is


def lines_of(service: Service) -> list[dict[str, Any]]:
    # A line that another program wrote, or that spans several, does not parse.
    return [json.loads(line) for line in (service.folder / "log").read_text().splitlines() if line not in CELERYS]


def test_names_are_handed_on_as_they_are_at_that_moment() -> None:
    assert logs.current() == {}
    logs.note(lost=1)  # outside of a block there is nothing that they belong to
    with logs.belonging_to(job="job_1"):
        logs.note(attempt=2)
        kept = logs.current()
        logs.note(trace="t")
        assert kept == {"job": "job_1", "attempt": 2}
    assert logs.current() == {}


@pytest.mark.long
def test_every_line_says_what_it_belongs_to(breakable: Service, tmp_path: Path) -> None:
    service = breakable
    service.environment["WBAR_LEASE_SECONDS"] = "1"
    service.start()
    (tmp_path / "bad").write_bytes(b"no weights")
    with service.client() as client, service.http() as http:
        inputs = {
            "checkpoint": client.checkpoints.create(write_start(tmp_path)).id,
            "dataset": client.datasets.create(write_archive(tmp_path)).id,
        }
        posted = http.post("/v1/jobs", json={**inputs, "method": LONG}, headers={"X-Request-ID": "r-1"})
        job = posted.json()["id"]
        wait_until(lambda: (client.jobs.get(job).progress or None) is not None, 60, "progress")
        worker = service.parts["train"]
        (training,) = training_processes(worker.pid)
        # A training process that fails by itself, and then a worker that falls silent: the sweeper takes the job from it.
        os.kill(training, signal.SIGSEGV)
        wait_until(lambda: client.jobs.get(job).attempts == 2, 60, "the second attempt")
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            wait_until(
                lambda: any("lost its lease" in line["message"] for line in lines_of(service)), 60, "the sweeper"
            )
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        client.jobs.cancel(job)
        assert http.get("/v1/jobs", headers={"Authorization": "Bearer wrong"}).status_code == 401
    service.stop()
    lines = lines_of(service)
    assert all({"time", "level", "logger", "message", "part"} <= set(line) for line in lines)
    (asked,) = [line for line in lines if line.get("request") == "r-1"]
    assert {"tenant", "key", "method", "path", "status", "seconds"} <= set(asked)
    assert asked["tenant"] == "default"
    (refused,) = [line for line in lines if line["part"] == "api" and line.get("status") == 401]
    assert "request" in refused
    assert "tenant" not in refused  # nobody knows whose it was
    for part in ("api", "sweep", "train"):
        assert any(line["part"] == part for line in lines), part
    (taken,) = [line for line in lines if "lost its lease" in line["message"]]
    assert (taken["part"], taken["tenant"], taken["job"], taken["attempt"]) == ("sweep", "default", job, 2)
    for line in lines:
        if job in line["message"] and line["part"] != "api":
            assert (line.get("tenant"), line.get("job")) == ("default", job), line
            assert line["attempt"] in (1, 2, 3), line
        if line["part"] == "api" and line["logger"] == "wbar.service":
            assert "request" in line, line


@pytest.mark.long
def test_a_training_process_logs_for_its_attempt(breakable: Service, tmp_path: Path) -> None:
    # An attempt whose inputs are gone fails in the worker, one whose files are damaged in its own process.
    breakable.start()
    with breakable.client() as client:
        inputs = {
            "checkpoint": client.checkpoints.create(write_start(tmp_path)).id,
            "dataset": client.datasets.create(write_archive(tmp_path)).id,
        }
        for path in (breakable.folder / "blobs").rglob("*"):
            if path.is_file():
                path.write_bytes(b"damaged")
        job = client.jobs.wait(client.jobs.create(**inputs, method={"type": "none", "epochs": 1}).id, 120)
    assert (job.status, job.error.code) == ("failed", "attempts_exhausted")
    breakable.stop()
    traced = [line for line in lines_of(breakable) if "exc_info" in line]
    assert {line["part"] for line in traced} == {"run_attempt"}
    assert [(line["tenant"], line["job"], line["attempt"]) for line in traced] == [
        ("default", job.id, attempt) for attempt in (1, 2, 3)
    ]
