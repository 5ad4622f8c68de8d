"""The OpenAPI document says what the service does: schemathesis asks it everything that the document allows, and more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Service
from tests.service.app import app_in

SECONDS = int(os.environ.get("WBAR_TEST_SCHEMATHESIS_SECONDS", "30"))
# A service without workers is not ready, and says so by its status; streams and downloads are asked elsewhere.
LEFT_OUT = ["--exclude-path", "/readyz"]
# What JSON Schema has no words for: a job's fields must fit each other (a warm-up is shorter than its phase), and so must a
# dataset's task and its source, and the headers of an upload; a study varies something; an architecture, what is merged, and
# the job that a page of sorted jobs begins behind must be there. And tus has its own statuses for what it does not take.
CONFIGURATION = """
hooks = "hooks.py"
[[operations]]
include-name = [
    "POST /v1/jobs", "GET /v1/jobs", "POST /v1/datasets", "POST /v1/checkpoints", "POST /v1/merges", "POST /v1/studies",
]
[operations.checks]
positive_data_acceptance.enabled = false

[[operations]]
include-path-regex = "^/v1/uploads"
[operations.checks]
positive_data_acceptance.enabled = false
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 409, 412, 413, 415, 422, 460]
missing_required_header.expected-statuses = [412]
"""
HOOKS = """
import schemathesis
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
"""


@pytest.mark.long
def test_nothing_is_answered_that_the_document_does_not_say(breakable: Service, tmp_path: Path) -> None:
    breakable.start("api")
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    (tmp_path / "hooks.py").write_text(HOOKS)
    ran = subprocess.run(
        [
            sys.executable, "-P", "-m", "schemathesis.cli", "run", f"{breakable.url}/openapi.json", "--header",
            f"Authorization: Bearer {breakable.key}", "--phases", "examples,coverage,fuzzing", "--max-time", str(SECONDS),
            "--max-examples", "25", "--continue-on-failure", "--no-color", "--seed", "1", *LEFT_OUT,
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS + 120,
    )  # fmt: skip
    failures = ran.stdout.partition("= FAILURES =")[2].partition("= WARNINGS =")[0]
    assert ran.returncode == 0, failures[-6000:] or ran.stdout[-3000:] + ran.stderr[-3000:]


@pytest.mark.parametrize("roots", [[], ["file:///data/"]])
def test_the_document_offers_the_sources_that_there_are(tmp_path: Path, roots: list[str]) -> None:
    with app_in(tmp_path, sources=roots) as app:
        text = json.dumps(app.request("GET", "/openapi.json").json())
    assert ("file:///data" in text) == bool(roots)
