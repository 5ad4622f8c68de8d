"""What HTTP's own rules ask for at the edges: conditions, ranges, HEAD, content types, and parameters that nobody takes."""

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Service, wait_until
from tests.material import write_archive, write_start
from wbar_service.jobs.stream import wants_stream


@pytest.fixture(scope="module")
def checkpoint(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    with service.client() as client:
        return client.checkpoints.create(write_start(tmp_path_factory.mktemp("corners"))).id


def test_head_is_the_answer_of_get_without_its_body_and_knows_no_ranges(
    service: Service, checkpoint: str, tmp_path: Path
) -> None:
    with service.client() as client:
        dataset = client.datasets.create(write_archive(tmp_path)).id
    with service.http() as http:
        for path in (
            f"/v1/checkpoints/{checkpoint}",
            "/v1/jobs?limit=1",
            "/healthz",
            "/readyz",
            "/docs",
            "/v1/architectures",
        ):
            got, head = http.get(path), http.head(path)
            assert (head.status_code, head.content) == (got.status_code, b""), path
            assert head.headers["content-type"] == got.headers["content-type"], path
            if "content-length" in got.headers and "healthz" not in path and "readyz" not in path:
                assert head.headers["content-length"] == got.headers["content-length"], path
            assert head.headers["x-request-id"]
        assert http.head("/v1/jobs/job_none").status_code == 404
        assert http.head("/nowhere").status_code == 404
        content = f"/v1/checkpoints/{checkpoint}/content"
        size = http.head(content).headers["content-length"]
        sheet = f"/v1/datasets/{dataset}/samples"  # which has no route of its own for HEAD
        for path, length in ((content, size), (sheet, http.get(sheet).headers["content-length"])):
            for wanted in ("bytes=0-1", "bytes=99999999-"):
                head = http.head(path, headers={"Range": wanted})
                assert (head.status_code, head.headers["content-length"]) == (200, length)
    with service.http(None) as stranger:
        assert stranger.head("/v1/jobs").status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("If-None-Match", '"a"'), ("If-None-Match", "{etag}")], 304),
        ([("If-Match", "{etag}")], 200),
        ([("If-Match", '"a"'), ("If-Match", "{etag}")], 200),
        ([("If-Match", "*")], 200),
        ([("If-Match", '"a"')], 412),
        ([("If-Match", "W/{etag}")], 412),
        ([("Range", "Bytes=1-2")], 206),
        ([("Range", "bytes=0-99999999999999999999")], 206),
        ([("Range", "bytes=99999999999999999999-")], 416),
    ],
)
def test_conditions_and_ranges(service: Service, checkpoint: str, headers: list[tuple[str, str]], status: int) -> None:
    path = f"/v1/checkpoints/{checkpoint}/content"
    with service.http() as http:
        etag = http.head(path).headers["etag"]
        answer = http.get(path, headers=[(name, value.format(etag=etag)) for name, value in headers])
    assert answer.status_code == status
    if status == 412:
        assert answer.json()["code"] == "precondition_failed"
        assert etag in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "parameter", "near"),
    [
        ("/v1/jobs?statsu=failed", "statsu", "status"),
        ("/v1/jobs?limt=1", "limt", "limit"),
        ("/v1/jobs?metadata=x", "metadata", ""),
        ("/v1/jobs?metadata[team=x", "metadata[team", ""),
        ("/v1/checkpoints?metadata[team]=x", "metadata[team]", ""),
        ("/v1/datasets?limit=1&verdict=better", "verdict", ""),
        ("/v1/workers?x=1", "x", ""),
    ],
)
def test_a_parameter_that_a_request_does_not_take_is_refused(
    service: Service, path: str, parameter: str, near: str
) -> None:
    with service.http() as http:
        answer = http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    [fault] = answer.json()["errors"]
    assert fault["parameter"] == parameter
    assert (f"did you mean {near}?" in fault["detail"]) == bool(near)


def test_nothing_is_created_where_a_parameter_is_unknown(service: Service, tmp_path: Path) -> None:
    with service.http() as http, service.client() as client:
        before = client.checkpoints.list(limit=1).first_id
        answer = http.post("/v1/checkpoints?nam=x", content=write_start(tmp_path).read_bytes())
        assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (422, "nam")
        assert client.checkpoints.list(limit=1).first_id == before


def test_a_tag_may_have_any_name_and_a_stream_the_stand_ins_parameter(service: Service) -> None:
    with service.http() as http:
        assert http.get("/v1/jobs?metadata[a]b]=x").json()["data"] == []
        answer = http.get("/v1/jobs/job_none/events?lastEventId=evt_1", headers={"Accept": "text/event-stream"})
        assert answer.status_code == 404


def test_bytes_of_uploads_in_parts_are_not_compressed(service: Service) -> None:
    tus = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
    with service.http() as http:
        made = http.post("/v1/uploads", headers={"Tus-Resumable": "1.0.0", "Upload-Length": "5"})
        sent = tus | {"Upload-Offset": "0"}
        refused = http.patch(made.headers["location"], content=b"12345", headers=sent | {"Content-Encoding": "gzip"})
        assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_media_type")
        assert (
            http.patch(made.headers["location"], content=b"12345", headers=sent | {"Content-Encoding": ""}).status_code
            == 204
        )
        at_once = tus | {"Upload-Length": "5", "Content-Encoding": "br"}
        assert http.post("/v1/uploads", content=b"12345", headers=at_once).status_code == 415


def test_lists_keep_what_is_in_a_status(service: Service, checkpoint: str, tmp_path: Path) -> None:
    with service.http() as http, service.client() as client:
        bad = http.post("/v1/checkpoints?name=bad", content=b"no checkpoint").json()["id"]
        wait_until(lambda: client.checkpoints.get(bad).status == "rejected", 60, "the verdict")
        ready = [one.id for one in client.checkpoints.iterate(status="ready")]
        rejected = [one.id for one in client.checkpoints.iterate(status="rejected")]
        assert (checkpoint in ready, bad in ready) == (True, False)
        assert (checkpoint in rejected, bad in rejected) == (False, True)
        both = http.get("/v1/checkpoints?status=ready&status=rejected&limit=100").json()["data"]
        assert {checkpoint, bad} <= {one["id"] for one in both}
        assert client.datasets.list(status="processing", limit=1).object == "list"
        assert client.merges.list(status="failed", limit=1).object == "list"
        assert http.get("/v1/checkpoints?status=bogus").status_code == 422


@pytest.mark.parametrize("limit", ["1_0", "+5", "5.0", " 5", "0x5"])
def test_whole_numbers_are_written_in_digits(service: Service, limit: str) -> None:
    with service.http() as http:
        for path in ("/v1/jobs", "/v1/checkpoints", "/v1/jobs/job_none/events"):
            answer = http.get(path, params={"limit": limit})
            assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (422, "limit")
        length = {"Tus-Resumable": "1.0.0", "Upload-Length": limit.strip()}
        if limit.strip() != "5":
            assert http.post("/v1/uploads", headers=length).status_code == 422


JSON = b'{"source": "builtin:digits"}'


@pytest.mark.parametrize(
    ("path", "body", "headers", "said"),
    [
        ("/v1/jobs", b"{}", {"Content-Type": "application/x-www-form-urlencoded"}, "application/json"),
        ("/v1/jobs", b"{}", {"Content-Type": "text/plain"}, "application/json"),
        ("/v1/jobs", b"{}", {}, "no Content-Type"),
        ("/v1/keys", b"{}", {"Content-Type": "multipart/form-data; boundary=x"}, "application/json"),
        ("/v1/webhooks", b"{}", {"Content-Type": "application/xml"}, "application/json"),
        ("/v1/merges", b"{}", {"Content-Type": "text/json"}, "application/json"),
        ("/v1/datasets", JSON, {"Content-Type": "application/x-www-form-urlencoded"}, "application/json"),
        ("/v1/checkpoints", JSON, {"Content-Type": "text/plain; charset=utf-8"}, "application/json"),
        (
            "/v1/jobs",
            b"{}",
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            "Content-Encoding 'gzip'",
        ),
        ("/v1/checkpoints", b"x" * 9, {"Content-Encoding": "gzip"}, "Content-Encoding 'gzip'"),
        ("/v1/datasets", b"x" * 9, {"Content-Encoding": "br"}, "Content-Encoding 'br'"),
    ],
)
def test_a_body_of_another_content_type_is_415(
    service: Service, path: str, body: bytes, headers: dict[str, str], said: str
) -> None:
    with service.http() as http:
        answer = http.post(path, content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type"), answer.text
    assert said in answer.json()["detail"]


def test_a_file_may_come_with_the_type_that_curl_gives_it(service: Service, tmp_path: Path) -> None:
    with service.http() as http, service.client() as client:
        curl = {"Content-Type": "application/x-www-form-urlencoded"}
        made = http.post("/v1/datasets?name=by curl", content=write_archive(tmp_path).read_bytes(), headers=curl).json()
        small = http.post("/v1/checkpoints?name=small", content=b"{no JSON", headers=curl)
        assert small.status_code == 201
        assert client.datasets.get(made["id"]).sha256 == made["sha256"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"a": }', "Expecting value: line 1 column 7"),
        (b'{\n"a": 1,\n', "line 3 column 1"),
        (b'{"a": "\xff"}', "no UTF-8 at byte 7"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too many digits"),
    ],
)
def test_a_body_that_is_no_json_says_where(service: Service, body: bytes, said: str) -> None:
    with service.http() as http:
        answer = http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    ("accept", "streamed"),
    [
        ("text/event-stream", True),
        ("TEXT/EVENT-STREAM", True),
        ("text/event-stream, application/json;q=0.5", True),
        ("text/event-stream;q=0", False),
        ("application/json, text/event-stream;q=0.1", False),
        ("application/json", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_the_stream_of_events_is_sent_where_accept_prefers_it(accept: str, streamed: bool) -> None:
    assert wants_stream(accept) is streamed


def test_a_stream_after_the_end_is_not_connected_again(service: Service, checkpoint: str, tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        dataset = client.datasets.create(write_archive(tmp_path)).id
        job = client.jobs.create(checkpoint=checkpoint, dataset=dataset, method={"cycles": 1})
        client.jobs.cancel(job.id)  # type: ignore[arg-type]
        events = list(client.jobs.events(job.id))  # type: ignore[arg-type]
        path, stream = f"/v1/jobs/{job.id}/events", {"Accept": "text/event-stream"}
        assert http.get(path, headers=stream | {"Last-Event-ID": events[-1].id}).status_code == 204
        assert http.get(path, headers=stream).text.count("data:") == len(events)
        assert list(client.jobs.events(job.id, after=events[-1].id)) == []  # type: ignore[arg-type]
        wrong = http.get(path, headers=stream | {"Last-Event-ID": "evt_x"})
        assert (wrong.status_code, wrong.json()["errors"][0]["parameter"]) == (422, "Last-Event-ID")


@pytest.mark.parametrize("request_line", [b"FOO /v1/jobs HTTP/1.1", b"get /v1/jobs HTTP/1.1"])
def test_what_cannot_be_parsed_has_a_request_id_too(service: Service, request_line: bytes) -> None:
    host, _, port = service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request_line + b"\r\nHost: x\r\n\r\n")
        answer = connection.makefile("rb").read().decode()
    assert answer.startswith("HTTP/1.1 400 ")
    assert "\r\nx-request-id: " in answer
    assert "look at the method" in answer


def test_the_clients_ids_address_nothing_else(service: Service, checkpoint: str) -> None:
    from wbar.errors import NotFound

    with service.client() as client:
        for wrong in (f"../checkpoints/{checkpoint}", "../keys", "a/b?c", "", "job 1", "job_1#x", None):
            calls: tuple[Any, ...] = (client.jobs.delete, client.jobs.get, client.checkpoints.get, client.merges.cancel)
            for call in calls:
                with pytest.raises(NotFound, match="ids have letters, digits and _ alone"):
                    call(wrong)
        assert client.checkpoints.get(checkpoint).status == "ready"
