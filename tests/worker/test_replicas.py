"""Replicas are joined to the same bytes by one worker or two, in either order, whoever is killed while they train or join."""

import signal
from pathlib import Path

import pytest

from tests.conftest import Service, wait_until
from tests.material import write_archive, write_start
from wbar.client import Client
from wbar.jobs import Job

# Many points of the line make the joining long enough to be killed in; the one that is delivered is w̄ itself.
METHOD = {
    "cycles": 3,
    "high": {"lr": 0.02},
    "low": {"lr": 0.002},
    "replicas": 2,
    "interpolate": {"alphas": [n / 31 for n in range(32)], "choose": 1.0},
}


def uploaded(client: Client, folder: Path) -> dict[str, str]:
    return {
        "checkpoint": client.checkpoints.create(write_start(folder)).id,
        "dataset": client.datasets.create(write_archive(folder)).id,
    }


def begun(client: Client, inputs: dict[str, str], **changes: object) -> tuple[str, list[str]]:
    """A new job with replicas, and their ids. changes: of the method."""
    job = client.jobs.create(**inputs, method=METHOD | changes).id
    assert job is not None
    replicas = client.jobs.get(job).replicas
    assert replicas is not None
    return job, [one.job for one in replicas]


def sha256_of(job: Job) -> str:
    assert job.status == "succeeded", job.error
    assert job.result is not None
    return job.result.weights.sha256


def trains(client: Client, job: str) -> bool:
    progress = client.jobs.get(job).progress
    return progress is not None and progress.step > 3


def is_there(service: Service, part: str) -> bool:
    """Whether a worker has said that it is ready."""
    with service.http() as http:
        listed = http.get("/v1/workers").json()["data"]
    return any(f"-{service.parts[part].pid}@" in one["id"] for one in listed)


def start_again(service: Service, name: str = "train") -> None:
    """Kill a worker, and start one in its place."""
    service.signal(name, signal.SIGKILL)
    service.start("train")


@pytest.mark.long
def test_the_bytes_are_the_same_whoever_is_killed(breakable: Service, tmp_path: Path) -> None:
    breakable.start()
    with breakable.client() as client:
        inputs = uploaded(client, tmp_path)
        job, _ = begun(client, inputs)
        digest = sha256_of(client.jobs.wait(job, timeout=180))

        # It is killed while it trains the first replica, and the next one while it joins.
        job, replicas = begun(client, inputs)
        wait_until(lambda: trains(client, replicas[0]), 60, "the first steps")
        start_again(breakable)
        wait_until(lambda: client.jobs.get(job).status == "running", 120, "the joining")
        start_again(breakable)
        done = client.jobs.wait(job, timeout=180)
        assert sha256_of(done) == digest
        assert done.attempts == 2
        assert client.jobs.get(replicas[0]).attempts == 2


@pytest.mark.long
def test_the_bytes_are_the_same_in_either_order(breakable: Service, tmp_path: Path) -> None:
    longer = {"cycles": 10, "interpolate": None}
    breakable.start()
    with breakable.client() as client:
        inputs = uploaded(client, tmp_path)
        job, replicas = begun(client, inputs, **longer)
        digest = sha256_of(client.jobs.wait(job, timeout=180))
        ends = [client.jobs.get(one).finished_at or "" for one in replicas]
        assert ends == sorted(ends), "one worker takes them in order"

        breakable.parts["another"] = breakable.parts.pop("train")
        breakable.start("train")
        wait_until(lambda: is_there(breakable, "train"), 90, "the second worker")
        job, replicas = begun(client, inputs, **longer)
        wait_until(lambda: trains(client, replicas[0]) and trains(client, replicas[1]), 60, "both to train")
        assert {client.jobs.get(one).status for one in replicas} == {"running"}
        client.jobs.pause(replicas[0])
        wait_until(lambda: client.jobs.get(replicas[1]).status == "succeeded", 120, "the end of the second")
        assert client.jobs.get(job).status == "queued"
        client.jobs.resume(replicas[0])
        assert sha256_of(client.jobs.wait(job, timeout=180)) == digest


@pytest.mark.long
def test_it_is_paused_resumed_and_cancelled_as_one(service: Service, tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        inputs = uploaded(client, tmp_path)
        job, replicas = begun(client, inputs)
        wait_until(lambda: trains(client, replicas[0]), 60, "the first steps")
        assert client.jobs.pause(job).status == "queued"
        wait_until(lambda: client.jobs.get(replicas[0]).status in ("paused", "succeeded"), 60, "the pause")
        assert client.jobs.get(replicas[1]).status == "queued", "it is held"
        early = http.post(f"/v1/jobs/{job}/finish")
        assert (early.status_code, early.json()["code"]) == (409, "invalid_transition")
        assert http.delete(f"/v1/jobs/{job}").json()["code"] == "invalid_transition"
        assert client.jobs.resume(job).status == "queued"
        wait_until(lambda: trains(client, replicas[1]), 120, "the second one")
        assert client.jobs.cancel(job).status == "cancelled"
        assert {client.jobs.get(one).status for one in replicas} <= {"cancelled", "succeeded"}
        client.jobs.delete(job)
        assert {http.get(f"/v1/jobs/{one}").status_code for one in replicas} == {404}


MEETING = {"cycles": 5, "high": {"lr": 0.02}, "low": {"lr": 0.002}, "replicas": 2, "join_every": 2, "join_keep": 0.25}


def meeting_jobs(client: Client, inputs: dict[str, str]) -> tuple[str, list[str]]:
    """A new job whose replicas meet after the snapshots 2 and 4 of 5, and their ids."""
    job = client.jobs.create(**inputs, method=MEETING).id
    assert job is not None
    replicas = client.jobs.get(job).replicas
    assert replicas is not None
    return job, [one.job for one in replicas]


def rounds(client: Client, job: str) -> list[tuple[int | None, bool]]:
    replicas = client.jobs.get(job).replicas
    assert replicas is not None
    return [(one.round, one.waits) for one in replicas]


def made_of_them(client: Client, service: Service, job: str, digests: list[str]) -> str:
    """The sha256 of a job that has succeeded, and of its replicas' own means."""
    done = client.jobs.wait(job, timeout=240)
    digest = sha256_of(done)
    replicas = client.jobs.get(job).replicas
    assert replicas is not None
    assert [(one.round, one.rounds) for one in replicas] == [(3, 3)] * 2
    own = [sha256_of(client.jobs.get(one.job)) for one in replicas]
    if digests:
        assert own == digests
    digests[:] = own
    assert done.result is not None
    assert done.result.meetings is not None
    assert [one.n for one in done.result.meetings] == [2, 4]
    with service.http() as http:
        assert "How far the replicas were from each other" in http.get(f"/v1/jobs/{job}/report").text
    return digest


@pytest.mark.long
def test_replicas_that_meet_give_the_same_bytes_whoever_is_killed_and_in_either_order(
    breakable: Service, tmp_path: Path
) -> None:
    breakable.start()
    own = list[str]()
    with breakable.client() as client:
        inputs = uploaded(client, tmp_path)
        job, replicas = meeting_jobs(client, inputs)
        digest = made_of_them(client, breakable, job, own)
        attempts = [client.jobs.get(one).attempts for one in replicas]
        assert attempts == [3, 3], "one worker was enough: each of them trained in three parts"

        # Killed within the first part, while one waits at the meeting, and as the second part begins.
        job, replicas = meeting_jobs(client, inputs)
        wait_until(lambda: trains(client, replicas[0]), 60, "the first steps")
        start_again(breakable)
        wait_until(lambda: rounds(client, job)[0] == (1, True), 120, "the first one at the meeting")
        assert client.jobs.get(replicas[0]).status == "queued"
        start_again(breakable)
        wait_until(lambda: any(one[0] == 2 for one in rounds(client, job)), 120, "the second part")
        start_again(breakable)
        assert made_of_them(client, breakable, job, own) == digest

        # Two workers; the first replica is held back, so that the second one comes to the meeting first.
        breakable.parts["another"] = breakable.parts.pop("train")
        breakable.start("train")
        wait_until(lambda: is_there(breakable, "train"), 90, "the second worker")
        job, replicas = meeting_jobs(client, inputs)
        wait_until(lambda: trains(client, replicas[0]), 60, "the first steps")
        client.jobs.pause(replicas[0])
        wait_until(lambda: rounds(client, job)[1] == (1, True), 120, "the second one at the meeting")
        client.jobs.resume(replicas[0])
        assert made_of_them(client, breakable, job, own) == digest


@pytest.mark.long
def test_replicas_that_meet_fail_together(service: Service, tmp_path: Path) -> None:
    with service.client() as client:
        job, replicas = meeting_jobs(client, uploaded(client, tmp_path))
        wait_until(lambda: rounds(client, job)[0] == (1, True), 120, "the first one at the meeting")
        client.jobs.cancel(replicas[1])
        first = client.jobs.wait(replicas[0], timeout=60)
        assert first.error is not None
        assert first.error.code == "replica_failed"
        assert f"replica 2 ({replicas[1]}) was cancelled" in first.error.message
        done = client.jobs.wait(job, timeout=60)
        assert done.error is not None
        assert done.error.code == "replica_failed"
