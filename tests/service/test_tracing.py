"""Traces go to a real receiver of OTLP: one trace from the client's own span to the job's last step."""

import time
from dataclasses import asdict
from pathlib import Path

import pytest
from sqlalchemy import update

from tests.collector import collecting
from tests.conftest import DATABASES, Broker, Service, fresh_database
from tests.material import write_archive, write_start
from tests.service.app import app_in
from tests.store.rows import insert_inputs
from tests.test_logs import lines_of
from wbar.checkpoints import CheckpointFacts
from wbar.datasets import ImageShape, Split
from wbar.jobs import Progress
from wbar.spec import Network
from wbar_store.database import Database, Tenant
from wbar_store.datasets import DatasetSummary
from wbar_store.tables import checkpoints, datasets
from wbar_store.tracing import Tracing
from wbar_worker.phases import PhaseSpans

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
JOB = {"checkpoint": "ckpt_1", "dataset": "ds_1", "method": {"type": "none", "epochs": 1}}


def insert_ready_inputs(database: Database) -> None:
    """Of which the API makes a job: with what a worker found out about them."""
    insert_inputs(database)
    facts = CheckpointFacts("safetensors", 269_722, 123, Network("resnet20", 10), "detected", "", None)
    summary = DatasetSummary(
        classes=list("0123456789"), splits={"train": Split(images=120), "val": Split(images=60)},
        image=ImageShape(channels=1, height=8, width=8), many_sizes=False, mean=[0.3], std=[0.3], held_out=None, warnings=[],
    )  # fmt: skip
    with database.write() as connection:
        connection.execute(update(checkpoints).values(facts=asdict(facts), weights="b" * 64))
        connection.execute(update(datasets).values(summary=summary.model_dump(), sha256="c" * 64, packed="d" * 64))


def test_a_request_goes_on_with_the_clients_trace_and_the_job_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv(ENDPOINT, collector.url)
        with app_in(tmp_path) as app:
            store = app.asgi.state.store
            insert_ready_inputs(store.database)
            for flags in ("01", "00"):  # the second one's client has decided that it is not to be recorded
                headers = {"traceparent": f"00-{TRACE}-{SPAN}-{flags}"}
                made = app.request("POST", "/v1/jobs", json=JOB, headers=headers)
                assert made.status_code == 201, made.text
                record = store.jobs.get(Tenant("default"), made.json()["id"])
                assert record.traceparent.startswith(f"00-{TRACE}-")
                assert record.traceparent.endswith(f"-{flags}")
                if flags == "01":
                    kept = record.traceparent.split("-")[2]
            app.request("GET", "/v1/jobs/job_none", headers={"traceparent": "no traceparent"})
            app.request("GET", "/healthz")
            app.asgi.state.tracing.close()
    created, asked = collector.spans
    assert (created.name, created.trace, created.parent, created.id) == ("POST /v1/jobs", TRACE, SPAN, kept)
    assert created.service == "wbar-api"
    assert created.attributes["http.response.status_code"] == 201
    assert (asked.name, asked.parent, asked.attributes["http.response.status_code"]) == (
        "GET /v1/jobs/{job_id}",
        "",
        404,
    )
    assert asked.trace != TRACE


def test_the_trace_is_not_a_part_of_what_decides_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv(ENDPOINT, collector.url)
        with app_in(tmp_path) as app:
            insert_ready_inputs(app.asgi.state.store.database)
            ids = [app.request("POST", "/v1/jobs", json=JOB).json()["id"] for _ in range(2)]
            one, other = (app.asgi.state.store.jobs.get(Tenant("default"), job) for job in ids)
            app.asgi.state.tracing.close()
    assert one.traceparent != other.traceparent
    assert one.spec.run_digest() == other.spec.run_digest()


def test_a_collector_that_is_away_costs_a_request_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    with app_in(tmp_path) as app:
        began = time.monotonic()
        assert app.request("GET", "/v1/jobs").status_code == 200
        app.asgi.state.tracing.close()
        assert time.monotonic() - began < 5


def test_nothing_is_traced_without_an_endpoint() -> None:
    tracing = Tracing("test", None)
    with tracing.span("nothing") as span:
        span.note({"a": 1})
        span.failed("nothing")
    tracing.record("nothing", 0.0, 1.0, {})
    assert (tracing.enabled, tracing.current()) == (False, None)
    tracing.close()


def test_phases_are_spans_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(100, 200))
    with collecting() as collector:
        monkeypatch.setenv(ENDPOINT, collector.url)
        tracing = Tracing("train", collector.url)
        with tracing.span("attempt"):
            phases = PhaseSpans(tracing, lambda: float(next(times)))
            for phase, cycle, step in (
                ("loading", 0, 0),
                ("high", 1, 5),
                ("high", 1, 9),
                ("low", 1, 12),
                ("high", 2, 20),
            ):
                phases.took(
                    Progress(phase=phase, cycle=cycle, cycles=2, epoch=1, step=step, total_steps=20, fraction=0.1)
                )
            phases.end()
        tracing.close()
    *found, attempt = collector.spans
    assert [(span.name, span.attributes["wbar.cycle"], span.attributes["wbar.step"]) for span in found] == [
        ("loading", 0, 0), ("high", 1, 9), ("low", 1, 12), ("high", 2, 20),
    ]  # fmt: skip
    assert [(span.began // 10**9, span.ended // 10**9) for span in found] == [
        (100, 101),
        (101, 102),
        (102, 103),
        (103, 104),
    ]
    assert {span.parent for span in found} == {attempt.id}


@pytest.mark.long
def test_one_trace_from_the_post_to_the_last_step(tmp_path: Path) -> None:
    with collecting() as collector, fresh_database(DATABASES[-1], tmp_path) as url:
        broker = Broker()
        broker.start()
        service = Service(tmp_path, url, broker, **{ENDPOINT: collector.url})
        try:
            service.start()
            with service.client() as client, service.http() as http:
                inputs = {
                    "checkpoint": client.checkpoints.create(write_start(tmp_path)).id,
                    "dataset": client.datasets.create(write_archive(tmp_path)).id,
                }
                method = {"cycles": 2, "high": {"lr": 0.02}, "low": {"lr": 0.002}}
                headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
                job = http.post("/v1/jobs", json={**inputs, "method": method}, headers=headers).json()["id"]
                ended = client.jobs.wait(job, 120)
                assert ended.status == "succeeded"
                last = client.jobs.metrics(job)[-1].step
        finally:
            service.stop()
            broker.kill()
    spans = [span for span in collector.spans if span.trace == TRACE]
    named = {span.name: span for span in spans}
    post, attempt = named["POST /v1/jobs"], named["attempt"]
    assert (post.parent, post.service) == (SPAN, "wbar-api")
    assert {named["queued"].parent, attempt.parent} == {post.id}
    assert (attempt.attributes["wbar.job"], attempt.service) == (job, "wbar-train")
    assert {span.parent for span in spans if span not in (post, attempt, named["queued"])} == {attempt.id}
    steps = [span for span in spans if span.name in ("high", "low")]
    # A phase may come again for a moment, after what was evaluated at its end.
    phases = [(span.name, span.attributes["wbar.cycle"]) for span in steps]
    assert list(dict.fromkeys(phases)) == [("high", 1), ("low", 1), ("high", 2), ("low", 2)]
    assert steps[-1].attributes["wbar.step"] == last
    assert {"loading", "evaluate", "fetch inputs", "publish"} <= set(named)
    assert named["publish"].attributes["wbar.ending"] == "succeeded"
    ordered = sorted((span for span in spans if span.parent == attempt.id), key=lambda span: span.began)
    assert all(attempt.began <= span.began <= span.ended <= attempt.ended for span in ordered)
    assert {line["part"] for line in lines_of(service) if line.get("trace") == TRACE} == {"api"}
