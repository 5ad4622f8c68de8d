"""Studies: all of their jobs or none, at most so many at a time whoever is killed, and a report while they run and after."""

import csv
import io
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Service, wait_until
from tests.material import write_archive, write_start
from wbar.client import Client

SHORT = {"type": "lawa", "window": 1, "epochs": 2, "shape": "constant"}


@pytest.fixture(scope="module")
def inputs(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return uploaded(service, tmp_path_factory.mktemp("studies"))


def uploaded(service: Service, folder: Path) -> dict[str, str]:
    with service.client() as client:
        checkpoint = client.checkpoints.create(write_start(folder))
        return {"checkpoint": checkpoint.id, "dataset": client.datasets.create(write_archive(folder)).id}


def ended(http: httpx.Client, study: str, timeout: float = 180) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def look() -> bool:
        found.update(http.get(f"/v1/studies/{study}").json())
        return bool(found["status"] == "ended")

    wait_until(look, timeout, "the end of the study")
    return found


@pytest.mark.long
def test_a_grid_is_run_and_reported(service: Service, inputs: dict[str, str]) -> None:
    body = {
        "name": "batch",
        "job": {
            **inputs,
            "method": SHORT,
            "recipe": {"augment": "none"},
            "metadata": {"team": "vision"},
            "flatness": True,
            "surface": {"points": 3, "around": ["averaged"]},
        },
        "batch_sizes": [20, 60],
        "rates": [0.01],
        "scaling": ["none", "linear"],
        "base_batch": 20,
        "at_once": 2,
    }
    with service.http() as http:
        made = http.post("/v1/studies", json=body)
        assert made.status_code == 201, made.text
        study = made.json()
        rates = [(one["settings"]["batch_size"], one["settings"]["lr"]) for one in study["children"]]
        assert rates == [(20, 0.01), (60, 0.01), (60, pytest.approx(0.03))], (
            "at the base batch both scalings are one job"
        )
        assert study["children"][0]["settings"]["scaling"] == ["none", "linear"]
        done = ended(http, study["id"])
        assert done["counts"] == {"succeeded": 3}
        wait_until(lambda: http.get(f"/v1/studies/{study['id']}").json()["ended_at"], 30, "its end to be noticed")
        job = http.get(f"/v1/jobs/{study['children'][2]['job']}").json()
        assert (job["recipe"]["batch_size"], job["method"]["lr"]) == (60, pytest.approx(0.03))
        assert job["metadata"] == {"team": "vision", "study": study["id"]}
        assert job["name"] == "batch: batch 60, lr 0.03 (linear)"
        assert job["requested"]["metadata"] == {"team": "vision"}, "a clone is not of the study"
        tagged = http.get("/v1/jobs", params={"metadata[study]": study["id"]}).json()["data"]
        assert {one["id"] for one in tagged} == {one["job"] for one in study["children"]}
        report = http.get(f"/v1/studies/{study['id']}/report").json()
        snapshots = http.get(f"/v1/jobs/{job['id']}/snapshots").json()["data"]
    last = report["jobs"][2]
    assert [point["epoch"] for point in last["validation"]] == [1.0, 2.0]
    assert [point["loss"] for point in last["validation"]] == [one["metrics"]["loss"] for one in snapshots]
    curve = [(one["loss"], one["accuracy"]) for one in job["result"]["curve"]]
    assert [(point["averaged_loss"], point["averaged_accuracy"]) for point in last["validation"]] == curve
    assert last["minimum_averaged"]["averaged_loss"] == min(loss for loss, _ in curve)
    assert last["minimum"]["loss"] == min(one["metrics"]["loss"] for one in snapshots)
    flatness = job["result"]["flatness"]
    assert last["flatness"]["distance"] == flatness["distance"]
    assert last["flatness"]["line"] == flatness["line"]
    assert last["flatness"]["surface"] == flatness["surface"]
    assert len(flatness["surface"]["val_loss"]["averaged"]) == 3
    assert sum(last["flatness"]["update_histogram"]["counts"]) == sum(
        sum(one["update_histogram"]["counts"]) for one in flatness["epochs"]
    )
    assert last["flatness"]["distance_by_layer"] == flatness["distance_by_layer"]
    assert [one["distance"] for one in last["epochs"]] == [one["distance"] for one in flatness["epochs"]]
    first = report["jobs"][0]
    assert first["epochs"][0]["distance_ratio"] == 1.0
    assert last["epochs"][1]["distance_ratio"] == pytest.approx(
        last["epochs"][1]["distance"] / first["epochs"][1]["distance"]
    )
    assert [one["batch_size"] for one in report["throughput"]] == [20, 60]
    assert all(one["seconds"] > 0 for job in report["jobs"] for one in job["epochs"])
    assert [group["jobs"] for group in report["groups"]] == [1, 1, 1]


def test_a_report_is_two_tables(service: Service, inputs: dict[str, str]) -> None:
    body = {
        "job": {**inputs, "method": SHORT},
        "vary": {"recipe.optimizer.weight_decay": [0, 0.001]},
        "rates": [0.01, 1e8 / 1e6],  # 100 is the highest rate: it diverges
        "seeds": [1],
    }
    with service.http() as http:
        study = http.post("/v1/studies", json=body).json()
        done = ended(http, study["id"])
        assert [one["status"] for one in done["children"]] == ["succeeded", "failed"] * 2
        assert {one["error"] for one in done["children"]} == {None, "diverged"}
        where = f"/v1/studies/{study['id']}/report"
        jobs = list(csv.DictReader(io.StringIO(http.get(where, params={"format": "csv"}).text)))
        epochs = http.get(where, params={"format": "csv", "rows": "epochs"})
        report = http.get(where).json()
    assert [row["recipe.optimizer.weight_decay"] for row in jobs] == ["0", "0", "0.001", "0.001"]
    assert [row["error"] for row in jobs] == ["", "diverged"] * 2
    assert all(float(row["min_val_loss"]) > 0 for row in jobs[::2])
    assert epochs.headers["content-type"].startswith("text/csv")
    of_first = [row for row in csv.DictReader(io.StringIO(epochs.text)) if row["n"] == "1"]
    assert [row["epoch"] for row in of_first] == ["1", "2"]
    assert [group["failed"] for group in report["groups"]] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({}, "validation_failed", "nothing is varied"),
        ({"seeds": [1, 1]}, "validation_failed", "1 is given twice"),
        (
            {"seeds": list(range(60)), "batch_sizes": [8, 16]},
            "study_too_large",
            "2 (batch_sizes) × 60 (seeds) = 120 jobs",
        ),
        ({"scaling": ["linear"], "batch_sizes": [8]}, "validation_failed", "none are given"),
        ({"scaling": ["sqrt"], "rates": [0.1]}, "validation_failed", "needs the batch"),
        ({"vary": {"recipe.batch_size": [8]}}, "validation_failed", "is varied by batch_sizes"),
        (
            {"vary": {"seed": [8]}},
            "validation_failed",
            "'seed' is no field that varies: paths begin with method. or recipe.",
        ),
        ({"vary": {"recipe.nonsense": [8]}}, "validation_failed", "the job with nonsense 8: /recipe/nonsense"),
        ({"changes": [{"dataset": "ds_2"}]}, "validation_failed", "dataset is that of all jobs"),
        ({"batch_sizes": [16, 60], "vary": {"recipe.accumulate": [1, 16]}}, "validation_failed", "batch 16"),
        (
            {"rates": [0.1, 0.2], "changes": [{"method": {"lr": 0.1}}]},
            "validation_failed",
            "the job with lr 0.1, change 1",
        ),
    ],
)
def test_requests_that_make_no_sense_leave_nothing(
    service: Service, inputs: dict[str, str], body: dict[str, Any], code: str, message: str
) -> None:
    with service.http() as http:
        before = http.get("/v1/jobs").json()["first_id"]
        answer = http.post("/v1/studies", json={"job": inputs, **body})
        assert (answer.status_code, answer.json()["code"]) == (422, code)
        assert message in answer.text
        assert http.get("/v1/jobs").json()["first_id"] == before


def test_a_dry_run_resolves_every_job_and_makes_none(service: Service, inputs: dict[str, str]) -> None:
    body = {"job": {**inputs, "method": SHORT}, "batch_sizes": [20, 60], "seeds": [0, 1], "at_once": 2, "dry_run": True}
    with service.http() as http, service.client() as client:
        before = http.get("/v1/studies").json()["first_id"], http.get("/v1/jobs").json()["first_id"]
        answer = http.post("/v1/studies", json=body)
        assert answer.status_code == 200, answer.text
        plan = answer.json()
        assert (plan["object"], plan["jobs"], plan["at_once"]) == ("study_plan", 4, 2)
        jobs = [child["job"] for child in plan["children"]]
        assert [(one["id"], one["recipe"]["batch_size"], one["seed"]) for one in jobs] == [
            (None, 20, 0), (None, 20, 1), (None, 60, 0), (None, 60, 1),
        ]  # fmt: skip
        estimate = plan["estimate"]
        assert estimate["steps"] == sum(one["estimate"]["steps"] for one in jobs) > 0
        assert estimate["bytes"] == sum(one["estimate"]["bytes"] for one in jobs) > 0
        if estimate["seconds"] is not None:  # some job ran on this checkpoint before
            assert estimate["seconds"] / 2 <= estimate["seconds_at_once"] + 0.1 <= estimate["seconds"] + 0.2
        refused = http.post("/v1/studies", json={**body, "changes": [{"evaluate": {"x": "ds_0"}}]})
        assert refused.status_code == 404
        assert "the job with batch 20, change 1, seed 0: there is no dataset 'ds_0'" in refused.text
        assert "set dry_run beside job" in http.post("/v1/studies", json={"job": {**inputs, "dry_run": True}}).text
        planned = client.studies.plan(body["job"], seeds=[0, 1, 2])  # type: ignore[arg-type]
        assert planned.jobs == 3
        assert (http.get("/v1/studies").json()["first_id"], http.get("/v1/jobs").json()["first_id"]) == before


def test_a_job_that_the_service_refuses_is_named_and_none_is_kept(service: Service, inputs: dict[str, str]) -> None:
    with service.http() as http:
        before = http.get("/v1/studies").json()["first_id"], http.get("/v1/jobs").json()["first_id"]
        body = {"job": inputs, "changes": [{"seed": 5}, {"evaluate": {"x": "ds_0"}}]}
        answer = http.post("/v1/studies", json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "the job with change 2: there is no dataset 'ds_0'" in answer.text
        assert (http.get("/v1/studies").json()["first_id"], http.get("/v1/jobs").json()["first_id"]) == before


def test_one_key_makes_one_study_and_another_tenant_sees_nothing_of_it(
    service: Service, inputs: dict[str, str]
) -> None:
    body = {"job": {**inputs, "method": SHORT}, "seeds": [0, 1]}
    with service.http() as http, service.http(service.other_key) as other:
        answers = [http.post("/v1/studies", json=body, headers={"Idempotency-Key": "study"}) for _ in range(2)]
        assert answers[0].text == answers[1].text
        study = answers[0].json()["id"]
        assert answers[1].headers["idempotent-replayed"] == "true"
        for method, path in (("GET", ""), ("GET", "/report"), ("POST", "/cancel"), ("POST", "/resume"), ("DELETE", "")):
            assert other.request(method, f"/v1/studies/{study}{path}").status_code == 404
        assert other.get("/v1/studies").json()["data"] == []
        assert next(one for one in http.get("/v1/studies").json()["data"] if one["id"] == study)["children"] is None
        ended(http, study)
        gone = http.get(f"/v1/studies/{study}").json()["children"][0]["job"]
        assert http.delete(f"/v1/jobs/{gone}").status_code == 200
        found = http.get(f"/v1/studies/{study}").json()
        assert (found["status"], found["counts"]) == ("ended", {"deleted": 1, "succeeded": 1})
        assert http.get(f"/v1/studies/{study}/report").json()["jobs"][0]["validation"] == []
        assert http.delete(f"/v1/studies/{study}").status_code == 200
        assert http.get(f"/v1/jobs/{found['children'][1]['job']}").status_code == 404
        assert http.get(f"/v1/studies/{study}").status_code == 404


def most_at_once(http: httpx.Client, study: str, until: Callable[[dict[str, Any]], bool], timeout: float = 180) -> int:
    """The largest number of its jobs that were seen running, until something is so."""
    most, deadline = 0, time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = http.get(f"/v1/studies/{study}").json()
        most = max(most, found["counts"].get("running", 0))
        if until(found):
            return most
        time.sleep(0.02)
    raise AssertionError(f"{study} did not get there in {timeout:g} s: {found['counts']}")


@pytest.mark.long
def test_a_study_keeps_to_its_slots_though_a_worker_is_killed(breakable: Service, tmp_path: Path) -> None:
    breakable.environment["WBAR_SLOTS"] = "3"
    breakable.start()
    body = {
        "job": {**uploaded(breakable, tmp_path), "method": {**SHORT, "epochs": 3}},
        "seeds": [0, 1, 2, 3, 4],
        "at_once": 2,
    }
    with breakable.http() as http, breakable.client() as client:
        study = http.post("/v1/studies", json=body).json()
        first = most_at_once(http, study["id"], lambda now: now["counts"].get("running", 0) == 2)
        beside = client.jobs.create(**body["job"])  # type: ignore[arg-type]
        wait_until(lambda: client.jobs.get(beside.id or "").status != "queued", 60, "a job that is not the study's")
        breakable.signal("train", signal.SIGKILL)
        breakable.start("train")
        most = max(first, most_at_once(http, study["id"], lambda now: now["status"] == "ended"))
        assert http.get(f"/v1/studies/{study['id']}").json()["counts"] == {"succeeded": 5}
        assert most == 2
        attempts = [client.jobs.get(one["job"]).attempts for one in study["children"]]
        assert max(attempts) == 2, "the job of the killed worker was taken up again"
        assert client.jobs.wait(beside.id or "", timeout=60).status == "succeeded"


@pytest.mark.long
def test_a_study_is_paused_resumed_and_cancelled_as_a_whole(breakable: Service, tmp_path: Path) -> None:
    breakable.start()
    inputs = uploaded(breakable, tmp_path)
    with breakable.http() as http, breakable.client() as client:
        body = {"job": {**inputs, "method": {**SHORT, "epochs": 30}}, "seeds": [0, 1, 2], "at_once": 1}
        study = http.post("/v1/studies", json=body).json()["id"]
        most_at_once(http, study, lambda now: _progress(client, now) > 0)
        assert http.post(f"/v1/studies/{study}/pause").status_code == 200
        most_at_once(http, study, lambda now: now["status"] == "paused")
        assert http.get(f"/v1/studies/{study}").json()["counts"] == {"paused": 1, "queued": 2}
        waiting = http.get(f"/v1/studies/{study}").json()["children"][1]["job"]
        assert client.jobs.get(waiting).queue_position is None, "it has no place while the study is paused"
        assert http.delete(f"/v1/studies/{study}").status_code == 409
        assert http.post(f"/v1/studies/{study}/resume").status_code == 200
        assert http.post(f"/v1/studies/{study}/resume").json()["code"] == "invalid_transition"
        most_at_once(http, study, lambda now: now["counts"].get("running") == 1)
        assert http.post(f"/v1/studies/{study}/cancel").json()["status"] == "ended"
        assert http.post(f"/v1/studies/{study}/cancel").json()["counts"] == {"cancelled": 3}
        assert http.delete(f"/v1/studies/{study}").status_code == 200


def _progress(client: Client, study: dict[str, Any]) -> int:
    jobs = [client.jobs.get(one["job"]) for one in study["children"] if one["status"] == "running"]
    return max((job.progress.step for job in jobs if job.progress), default=0)
