"""The Grafana dashboard asks for nothing that `GET /metrics` does not have, and leaves nothing of it out."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.service.app import app_in
from wbar_store.workers import GpuMemory, WorkerRecord

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "wbar.json"
NAME = re.compile(r"wbar_\w+")
OWN_LABELS = {"instance", "le"}  # of Prometheus


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def queries() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def answer(folder: Path) -> str:
    """What a service answers that has seen everything once."""
    with app_in(folder) as app:
        store = app.asgi.state.store
        store.counters.add("sweeps", "done")
        store.workers.seen(WorkerRecord("train-1@here", "train", "cuda", 1, (GpuMemory("GPU-1", 1, 2),)))
        app.request("GET", "/v1/jobs")
        return app.request("GET", "/metrics", key=None).text


def families(folder: Path) -> list[Metric]:
    return list(text_string_to_metric_families(answer(folder)))


def promtool(*arguments: str, given: str = "") -> str:
    """What Prometheus' own checker (Debian: the package `prometheus`) finds: nothing."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed")
    ran = subprocess.run([program, *arguments], input=given, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_every_query_names_a_metric_that_is_there_and_every_metric_is_asked_for(tmp_path: Path) -> None:
    there = families(tmp_path)
    samples = {sample.name for family in there for sample in family.samples}
    asked = {name for query in queries() for name in NAME.findall(query)}
    assert asked <= samples
    own = [family.name for family in there if not family.name.endswith("_created")]  # those are the client library's
    unasked = [family for family in own if not any(name.startswith(family) for name in asked)]
    assert unasked == []


def test_every_label_of_a_query_is_one_of_its_metric(tmp_path: Path) -> None:
    labels: dict[str, set[str]] = {}
    for family in families(tmp_path):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    for query in queries():
        known = set.union(*(labels[name] for name in NAME.findall(query))) | OWN_LABELS
        by = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
        matched = set(re.findall(r"(\w+)=~?\"", query))
        assert by | matched <= known, query


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_promtool_finds_nothing_in_what_is_scraped(tmp_path: Path) -> None:
    assert promtool("check", "metrics", given=answer(tmp_path)) == ""


def test_promtool_reads_every_query(tmp_path: Path) -> None:
    asked = [query.replace("$instance", ".*") for query in queries() if not query.startswith("label_values")]
    rules = [{"record": f"panel:{n}", "expr": query} for n, query in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"SUCCESS: {len(asked)} rules found" in promtool("check", "rules", str(tmp_path / "rules.yml"))
