"""What can go wrong around a job: workers, brokers and training processes that die, and jobs that should not go on."""

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import Service, wait_until
from tests.material import write_archive, write_start
from wbar.client import Client

LONG = {"cycles": 50, "high": {"lr": 0.02}, "low": {"lr": 0.002}}
SHORT = {"cycles": 2, "high": {"lr": 0.02}, "low": {"lr": 0.002}}


def upload(client: Client, folder: Path) -> dict[str, str]:
    return {
        "checkpoint": client.checkpoints.create(write_start(folder)).id,
        "dataset": client.datasets.create(write_archive(folder)).id,
    }


def step_of(client: Client, job_id: str) -> int:
    progress = client.jobs.get(job_id).progress
    return progress.step if progress else -1


def training_processes(worker: int) -> list[int]:
    """Processes below the worker that run an attempt: the forkserver's children."""
    process_ids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (children := _parent(int(entry.name))) and _parent(children) == worker:
            process_ids.append(int(entry.name))
    return process_ids


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_diverging_job_fails_with_the_reason_and_keeps_its_snapshots(service: Service, tmp_path: Path) -> None:
    with service.client() as client:
        # Just beyond the stability of Nesterov's momentum, lr · 2λ > (2 + 2β) / (1 + 2β): it takes some cycles to overflow.
        method = {"cycles": 30, "high": {"lr": 0.05}, "low": {"lr": 0.05}, "pull": 14.5, "back_off": False}
        ends = client.jobs.wait(client.jobs.create(**upload(client, tmp_path), method=method).id, timeout=120)
        assert ends.status == "failed"
        assert ends.error.code == "diverged"
        assert "step" in ends.error.message
        assert "phase" in ends.error.message
        assert "lower method" in ends.error.message
        kept = client.jobs.snapshots(ends.id)
        assert 1 <= len(kept) < 30
        for snapshot in kept:
            client.jobs.download_snapshot(ends.id, snapshot.n, tmp_path / f"{snapshot.n}")
        with service.http() as http:
            answer = http.get(f"/v1/jobs/{ends.id}/weights")
        assert (answer.status_code, answer.json()["code"]) == (409, "no_weights")


def test_cancel_ends_the_training_process(service: Service, tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        job = client.jobs.create(**upload(client, tmp_path), method=LONG)
        wait_until(lambda: step_of(client, job.id) > 5, 60, "the first steps")
        assert http.get(f"/v1/jobs/{job.id}/weights").json()["code"] == "job_not_finished"
        running = training_processes(service.parts["train"].pid)
        assert len(running) == 1
        assert client.jobs.cancel(job.id).status == "cancelled"
        wait_until(lambda: not alive(running[0]), 30, "the end of the training process")
        assert client.jobs.cancel(job.id).status == "cancelled"
        assert http.post(f"/v1/jobs/{job.id}/resume").json()["code"] == "invalid_transition"
        assert [e.data["status"] for e in client.jobs.events(job.id) if e.type == "status"][-1] == "cancelled"
        client.jobs.delete(job.id)
        assert http.get(f"/v1/jobs/{job.id}").status_code == 404


def test_pause_and_resume_end_in_the_same_weights(service: Service, tmp_path: Path) -> None:
    with service.client() as client:
        ids = upload(client, tmp_path)
        first = client.jobs.wait(client.jobs.create(**ids, method=SHORT).id, timeout=60)
        job = client.jobs.create(**ids, method=SHORT)
        wait_until(lambda: step_of(client, job.id) > 3, 60, "the first steps")
        client.jobs.pause(job.id)
        wait_until(lambda: client.jobs.get(job.id).status in ("paused", "succeeded"), 30, "the pause")
        if client.jobs.get(job.id).status == "paused":
            assert client.jobs.resume(job.id).status == "queued"
        assert client.jobs.wait(job.id, timeout=60).result.weights.sha256 == first.result.weights.sha256


@pytest.mark.long
def test_a_job_is_finished_now_though_its_worker_is_killed(breakable: Service, tmp_path: Path) -> None:
    breakable.start()
    with breakable.client() as client, breakable.http() as http:
        job = client.jobs.create(**upload(client, tmp_path), method=LONG | {"control": True})
        assert job.id is not None
        early = http.post(f"/v1/jobs/{job.id}/finish")
        assert (early.status_code, early.json()["code"]) == (409, "invalid_transition")
        wait_until(lambda: len(client.jobs.snapshots(job.id)) >= 2, 60, "two snapshots")  # type: ignore[arg-type]
        assert client.jobs.finish(job.id).status == "running"
        breakable.signal("train", signal.SIGKILL)
        breakable.start("train")
        done = client.jobs.wait(job.id, timeout=90)
        assert done.status == "succeeded", done.error
        assert done.result is not None
        assert done.result.finished_early
        assert done.result.metrics.control is None
        # The attempt that went on may have begun at a state before the second snapshot, and ends where it is asked.
        assert 1 <= len(done.result.curve) < 50
        assert len(client.jobs.snapshots(job.id)) == len(done.result.curve)
        assert done.progress is not None
        assert done.progress.fraction == 1
        again = http.post(f"/v1/jobs/{job.id}/finish")
        assert (again.status_code, again.json()["code"]) == (409, "invalid_transition")


def test_a_long_job_never_holds_up_an_upload(service: Service, tmp_path: Path) -> None:
    with service.client() as client:
        ids = upload(client, tmp_path)
        job = client.jobs.create(**ids, method=LONG)
        wait_until(lambda: step_of(client, job.id) > 0, 60, "the first step")
        assert client.checkpoints.create(write_start(tmp_path, prefix="module.")).status == "ready"
        assert client.jobs.get(job.id).status == "running"
        client.jobs.cancel(job.id)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSEGV, marks=pytest.mark.long)])
def test_a_training_process_that_dies_is_tried_again_from_where_it_was(
    service: Service, tmp_path: Path, number: signal.Signals
) -> None:
    with service.client() as client:
        job = client.jobs.create(**upload(client, tmp_path), method={**LONG, "cycles": 6})
        wait_until(lambda: step_of(client, job.id) > 40, 60, "some steps")
        os.kill(training_processes(service.parts["train"].pid)[0], number)
        ended = client.jobs.wait(job.id, timeout=120)
        assert (ended.status, ended.attempts) == ("succeeded", 2)
        log = [event.data["message"] for event in client.jobs.events(job.id) if event.type == "log"]
        assert any(number.name in message for message in log)
        assert any("went on from step" in message for message in log)


@pytest.mark.long
def test_a_job_that_kills_every_attempt_fails_with_a_clear_error(breakable: Service, tmp_path: Path) -> None:
    breakable.environment["WBAR_SAVE_EVERY_SECONDS"] = "1000"
    breakable.start()
    with breakable.client() as client:
        job = client.jobs.create(**upload(client, tmp_path), method={**LONG, "high": {"lr": 0.02, "epochs": 100}})
        for attempt in (1, 2, 3):
            wait_until(
                lambda attempt=attempt: (
                    client.jobs.get(job.id).attempts == attempt and training_processes(breakable.parts["train"].pid)
                ),
                60,
                f"attempt {attempt}",
            )
            os.kill(training_processes(breakable.parts["train"].pid)[0], signal.SIGSEGV)
        ended = client.jobs.wait(job.id, timeout=60)
        assert ended.status == "failed"
        assert ended.error.code == "attempts_exhausted"
        assert "SIGSEGV" in ended.error.message


@pytest.mark.long
def test_a_stopping_worker_gives_its_job_back_and_leaves_no_process(breakable: Service, tmp_path: Path) -> None:
    breakable.start()
    with breakable.client() as client:
        ids = upload(client, tmp_path)
        whole = client.jobs.wait(client.jobs.create(**ids, method=SHORT).id, timeout=60)
        job = client.jobs.create(**ids, method=SHORT)
        wait_until(lambda: step_of(client, job.id) > 3, 60, "the first steps")
        running = training_processes(breakable.parts["train"].pid)
        breakable.signal("train", signal.SIGTERM)
        given_back = client.jobs.get(job.id)
        assert given_back.status in ("queued", "succeeded")
        assert not [pid for pid in running if alive(pid)]
        breakable.start("train")
        assert client.jobs.wait(job.id, timeout=60).result.weights.sha256 == whole.result.weights.sha256


@pytest.mark.long
def test_losing_the_whole_broker_loses_nothing(breakable: Service, tmp_path: Path) -> None:
    breakable.start()
    with breakable.client() as client, breakable.http() as http:
        ids = upload(client, tmp_path)
        running = client.jobs.create(**ids, method={**LONG, "cycles": 5})
        waiting = client.jobs.create(**ids, method=SHORT)
        wait_until(lambda: step_of(client, running.id) > 3, 60, "the first steps")
        breakable.broker.kill()
        during = client.jobs.create(**ids, method=SHORT)
        assert during.status == "queued"
        assert http.get("/readyz").status_code == 503
        assert http.get("/readyz").json()["checks"]["broker"] != "ok"
        breakable.broker.start()
        for job in (running, waiting, during):
            assert client.jobs.wait(job.id, timeout=120).status == "succeeded"
        assert client.jobs.get(running.id).attempts == 1
        assert client.checkpoints.create(write_start(tmp_path, prefix="module.")).status == "ready"
