"""Further datasets of a job: checked when it is asked for, kept while it needs them, scored when it is done."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Service
from tests.material import turned_archive, write_archive, write_start
from wbar import Client
from wbar.jobs import Job


@dataclass(frozen=True)
class Inputs:
    checkpoint: str
    dataset: str
    turned: str
    others: str  # another dataset, of other classes


@pytest.fixture(scope="module")
def inputs(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "turned.zip").write_bytes(turned_archive())
    (folder / "others.zip").write_bytes(turned_archive("x"))
    with service.client() as client:
        made = [
            client.datasets.create(path).id
            for path in (write_archive(folder), folder / "turned.zip", folder / "others.zip")
        ]
        return Inputs(client.checkpoints.create(write_start(folder)).id, *made)


def body(inputs: Inputs, **changes: Any) -> dict[str, Any]:
    return {"checkpoint": inputs.checkpoint, "dataset": inputs.dataset, "method": {"cycles": 1}} | changes


def refused(http: httpx.Client, asked: dict[str, Any], status: int, code: str) -> dict[str, Any]:
    for more in ({}, {"dry_run": True}):
        answer = http.post("/v1/jobs", json=asked | more)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    problem: dict[str, Any] = answer.json()
    return problem


def test_a_set_that_cannot_be_is_refused_by_name(service: Service, inputs: Inputs) -> None:
    with service.http() as http:
        assert "ds_none" in refused(http, body(inputs, evaluate={"a": "ds_none"}), 404, "not_found")["detail"]
        detail = refused(http, body(inputs, evaluate={"sketch": inputs.others}), 422, "classes_mismatch")["detail"]
        assert "evaluate.sketch" in detail
        assert "'x0'" in detail
        own = refused(http, body(inputs, evaluate={"own": inputs.dataset}), 422, "validation_failed")
        assert own["errors"][0]["pointer"] == "/evaluate/own"
        twice = refused(http, body(inputs, evaluate={"a": inputs.turned, "b": inputs.turned}), 422, "validation_failed")
        assert "a and b are both" in twice["errors"][0]["detail"]
        for name in ("A", "", "no spaces", "=x", "a" * 33, "sketch/b"):
            found = refused(http, body(inputs, evaluate={name: inputs.turned}), 422, "validation_failed")
            assert found["errors"][0]["pointer"].startswith("/evaluate"), name
        many = {f"s{n}": f"ds_{n}" for n in range(17)}
        assert (
            "17 evaluation sets"
            in refused(http, body(inputs, evaluate=many), 422, "validation_failed")["errors"][0]["detail"]
        )
        unknown = refused(http, body(inputs, evaluate={"a": inputs.turned}, select_on="b"), 422, "validation_failed")
        assert "not among the names" in unknown["errors"][0]["detail"]
        nothing = refused(http, body(inputs, evaluate={"a": inputs.turned}, select_on="a"), 422, "validation_failed")
        assert nothing["errors"][0]["pointer"] == "/select_on"


def test_a_dataset_of_another_tenant_is_not_found(service: Service, inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "turned.zip").write_bytes(turned_archive())
    with Client(service.url, service.other_key) as stranger:
        theirs = stranger.datasets.create(tmp_path / "turned.zip").id
    with service.http() as http:
        assert theirs in refused(http, body(inputs, evaluate={"a": theirs}), 404, "not_found")["detail"]


def test_a_set_that_is_not_ready_is_a_conflict(service: Service, inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")
    with service.http() as http:
        with (tmp_path / "broken.zip").open("rb") as file:
            made = http.post("/v1/datasets", files={"file": ("broken.zip", file)}).json()
        problem = refused(http, body(inputs, evaluate={"a": made["id"]}), 409, "dataset_not_ready")
        assert made["id"] in problem["detail"]


def test_a_job_is_scored_on_its_sets_keeps_them_while_it_needs_them_and_is_cloned_with_them(
    service: Service, inputs: Inputs, tmp_path: Path
) -> None:
    (tmp_path / "turned.zip").write_bytes(turned_archive())
    with service.client() as client, service.http() as http:
        turned = client.datasets.create(tmp_path / "turned.zip").id
        asked = body(inputs, evaluate={"turned": turned}, select_on="turned")
        asked["method"] = {"cycles": 200, "interpolate": {"alphas": [0, 0.5]}}
        dry = client.jobs.create(**asked, dry_run=True)
        assert (dry.evaluate, dry.select_on, dry.id) == ({"turned": turned}, "turned", None)
        long = client.jobs.create(**asked)
        in_use = http.delete(f"/v1/datasets/{turned}")
        assert (in_use.status_code, in_use.json()["code"]) == (409, "in_use"), in_use.text
        assert long.id is not None
        client.jobs.cancel(long.id)
        job = client.jobs.clone(long.id, method={"cycles": 1})
        assert (job.evaluate, job.select_on) == ({"turned": turned}, "turned")
        check(client, job)
        assert http.delete(f"/v1/datasets/{turned}").status_code == 200, "an ended job needs it no more"
        assert client.jobs.get(job.id).evaluate == {"turned": turned}  # type: ignore[arg-type]
        again = http.post(f"/v1/jobs/{job.id}/clone", json={})
        assert (again.status_code, again.json()["code"]) == (404, "not_found")
        page = http.get(f"/v1/jobs/{job.id}/report").text
        assert "On turned" in page
        assert "From the start to w̄" in page


def check(client: Client, job: Job) -> None:
    assert job.id is not None
    done = client.jobs.wait(job.id, timeout=180)
    assert done.status == "succeeded", done.error
    assert done.result is not None
    (found,) = done.result.evaluation.values()
    assert found.selected_on
    assert found.images == 60, "those of its val/"
    assert done.result.held_out.report == 60
    assert set(found.metrics.named()) == set(done.result.metrics.named())
    assert done.result.interpolation is not None
    assert [point.evaluation["turned"].loss for point in done.result.interpolation.points]
