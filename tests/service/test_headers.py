"""Headers that browsers obey, ids that join answers and logs, and no secret in any of them."""

import base64
import hashlib
import io
import json
import logging
import re
from pathlib import Path

import pytest

from tests.service.app import app_in
from wbar_store import logs


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/none", "/healthz", "/openapi.json"])
def test_an_answer_is_no_page(tmp_path: Path, path: str) -> None:
    with app_in(tmp_path) as app:
        for key in ("", None):
            found = app.request("GET", path, key=key).headers
            assert found["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
            assert (found["x-content-type-options"], found["referrer-policy"]) == ("nosniff", "no-referrer")
            assert "access-control-allow-origin" not in found
            assert found["x-request-id"]


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_runs_its_own_scripts_only(tmp_path: Path, path: str) -> None:
    with app_in(tmp_path) as app:
        page = app.request("GET", path)
        policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
        assert "unsafe" not in policy["script-src"]
        assert policy["frame-ancestors"] == "'none'"
        for script in re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy["script-src"]
        assert app.request("OPTIONS", "/v1/jobs", headers={"Origin": "http://evil"}).status_code == 405


def test_a_line_of_the_log_says_what_it_belongs_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before, level, stream = root.handlers[:], root.level, io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    try:
        logs.configure("api")
        with app_in(tmp_path) as app:
            made = app.request(
                "POST", "/v1/keys", json={"name": "secret keeper"}, headers={"X-Request-ID": "request-1"}
            )
            app.request("DELETE", "/v1/jobs/job_none", headers={"X-Request-ID": "request-2"})
            app.request("GET", "/v1/jobs", headers={"X-Request-ID": "request-3"})
            app.request("POST", "/v1/jobs", key="wbar_wrong", headers={"X-Request-ID": "request-4"})
        with logs.belonging_to(job="job_1", attempt=2):
            logging.getLogger("wbar.worker").warning("a line of the worker")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    by_request = {line["request"]: line for line in lines if "request" in line}
    assert (by_request["request-1"]["status"], by_request["request-1"]["tenant"]) == (201, "default")
    assert by_request["request-2"]["status"] == 404
    assert "request-3" not in by_request, "what is polled is not logged"
    assert "tenant" not in by_request["request-4"]
    assert (lines[-1]["job"], lines[-1]["attempt"], lines[-1]["level"]) == ("job_1", 2, "WARNING")
    assert all(line["part"] == "api" and line["time"] for line in lines)
    for secret in (app.key, made.json()["key"], "wbar_wrong"):
        assert secret not in stream.getvalue()
