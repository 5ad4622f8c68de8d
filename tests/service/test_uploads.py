"""Uploads that arrive in parts: what tus 1.0.0 says, on an API in this process."""

import base64
import hashlib
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from tests.conftest import DATABASES, fresh_database
from tests.service.app import App, app_in
from wbar.uploads import decode_metadata, encode_metadata
from wbar_store.database import Tenant, now
from wbar_store.store import Store
from wbar_store.tables import resumable_uploads

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = TUS | {"Content-Type": "application/offset+octet-stream"}
LIMITS = {"max_checkpoint_bytes": 60_000, "max_dataset_bytes": 50_000}
CONTENT = bytes(range(256)) * 40


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in(tmp_path, **LIMITS) as started:
        yield started


@pytest.fixture(params=DATABASES)
def on_each(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    """An API on each database: for what transactions decide, and PostgreSQL's row-level security."""
    with fresh_database(request.param, tmp_path) as url, app_in(tmp_path, database_url=url, **LIMITS) as started:
        yield started


def store_of(app: App) -> Store:
    store: Store = app.asgi.state.store
    return store


def begin(app: App, length: int | None = len(CONTENT), **headers: str) -> str:
    """Create an upload and return its path."""
    size = {"Upload-Length": str(length)} if length is not None else {}
    answer = app.request("POST", "/v1/uploads", headers=TUS | size | headers)
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def begin_at(http: httpx.Client, length: int, **headers: str) -> str:
    """Create an upload of a running service and return its path."""
    answer = http.post("/v1/uploads", headers=TUS | {"Upload-Length": str(length)} | headers)
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def send(app: App, path: str, offset: int, content: Any, **headers: str) -> httpx.Response:
    return app.request("PATCH", path, content=content, headers=BYTES | {"Upload-Offset": str(offset)} | headers)


def offset_of(app: App, path: str) -> int:
    answer = app.request("HEAD", path, headers=TUS)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    return int(answer.headers["upload-offset"])


def finished(app: App, content: bytes = CONTENT, **headers: str) -> str:
    path = begin(app, len(content), **headers)
    assert send(app, path, 0, content).status_code == 204
    return path


def named(path: str) -> dict[str, str]:
    return {"upload": path.rpartition("/")[2]}


def parts(tmp_path: Path) -> list[Path]:
    return [one for one in (tmp_path / "blobs" / "parts").glob("*") if one.is_file()]


def other_key(app: App) -> str:
    return store_of(app).keys.create("another", Tenant("other")).key


def checksum(algorithm: str, content: bytes) -> str:
    digest = (
        zlib.crc32(content).to_bytes(4, "big") if algorithm == "crc32" else hashlib.new(algorithm, content).digest()
    )
    return f"{algorithm} {base64.b64encode(digest).decode()}"


def test_the_protocol_is_described(app: App) -> None:
    for path in ("/v1/uploads", begin(app)):
        answer = app.request("OPTIONS", path)
        assert answer.status_code == 204
        assert answer.headers["tus-version"] == answer.headers["tus-resumable"] == "1.0.0"
        assert answer.headers["tus-max-size"] == "60000"
        assert {"creation", "termination", "checksum"} <= set(answer.headers["tus-extension"].split(","))
        assert answer.headers["tus-checksum-algorithm"] == "crc32,sha1,sha256"


@pytest.mark.parametrize("version", [None, "0.2.2", "2.0.0"])
def test_another_version_is_refused_with_ours(app: App, version: str | None) -> None:
    path = begin(app)
    for method, where in (("POST", "/v1/uploads"), ("HEAD", path), ("PATCH", path), ("DELETE", path)):
        headers = {"Upload-Length": "1"} | ({"Tus-Resumable": version} if version else {})
        answer = app.request(method, where, headers=headers)
        assert (answer.status_code, answer.headers["tus-version"]) == (412, "1.0.0"), (method, where)
    assert app.request("GET", path).json()["status"] == "receiving", "JSON is for everybody"


def test_an_upload_comes_in_pieces_and_becomes_a_checkpoint(on_each: App, tmp_path: Path) -> None:
    metadata = encode_metadata({"filename": "start.pth", "note": "ü"})
    path = begin(on_each, **{"Upload-Metadata": metadata})
    assert offset_of(on_each, path) == 0
    assert on_each.request("POST", "/v1/checkpoints", json=named(path)).json()["code"] == "upload_not_finished"
    first = send(on_each, path, 0, CONTENT[:5000])
    assert (first.status_code, first.headers["upload-offset"]) == (204, "5000")
    assert first.headers["upload-expires"].endswith("GMT")
    head = on_each.request("HEAD", path, headers=TUS)
    assert (head.headers["upload-length"], head.headers["upload-metadata"]) == (str(len(CONTENT)), metadata)
    send(on_each, path, 5000, CONTENT[5000:])
    shown = on_each.request("GET", path).json()
    assert (shown["status"], shown["offset"], shown["metadata"]["note"]) == ("finished", len(CONTENT), "ü")
    made = on_each.request("POST", "/v1/checkpoints?num_classes=7", json=named(path))
    assert made.status_code == 201, made.text
    direct = on_each.request("POST", "/v1/checkpoints?num_classes=7&name=start.pth", content=CONTENT)
    same = ("name", "status", "bytes", "sha256")
    assert [made.json()[field] for field in same] == [direct.json()[field] for field in same]
    assert (made.json()["name"], made.json()["sha256"]) == ("start.pth", hashlib.sha256(CONTENT).hexdigest())
    assert parts(tmp_path) == []
    assert list((tmp_path / "blobs" / "tmp").iterdir()) == []
    assert on_each.request("GET", path).json()["status"] == "used"
    again = on_each.request("POST", "/v1/checkpoints", json=named(path))
    assert (again.status_code, again.json()["code"]) == (409, "upload_used")


def test_a_dataset_is_made_of_an_upload(app: App) -> None:
    made = app.request("POST", "/v1/datasets?name=mine", json=named(finished(app)))
    assert (made.status_code, made.json()["bytes"], made.json()["name"]) == (201, len(CONTENT), "mine")
    for body in ({}, {"source": "builtin:digits", "upload": "upload_1"}, {"upload": "ckpt_1"}):
        assert app.request("POST", "/v1/datasets", json=body).status_code == 422
    assert app.request("POST", "/v1/datasets", json={"upload": "upload_1"}).status_code == 404


@pytest.mark.parametrize("resource", ["checkpoints", "datasets"])
def test_a_request_that_comes_again_gets_the_first_answer(on_each: App, resource: str) -> None:
    path, key = finished(on_each), {"Idempotency-Key": "once"}
    first = on_each.request("POST", f"/v1/{resource}", json=named(path), headers=key)
    second = on_each.request("POST", f"/v1/{resource}", json=named(path), headers=key)
    assert (second.status_code, second.json()) == (201, first.json())
    assert second.headers["idempotent-replayed"] == "true"
    direct = on_each.request("POST", f"/v1/{resource}", content=CONTENT, headers=key)
    assert direct.json() == first.json(), "the same bytes by another way are the same request"
    other = on_each.request("POST", f"/v1/{resource}", json=named(finished(on_each, b"other")), headers=key)
    assert other.json()["code"] == "idempotency_key_reused"
    created = [on_each.request("POST", "/v1/uploads", headers=TUS | key | {"Upload-Length": "5"}) for _ in range(2)]
    assert [one.json()["code"] for one in created] == ["idempotency_key_reused"] * 2
    created = [
        on_each.request("POST", "/v1/uploads", headers=TUS | {"Upload-Length": "5", "Idempotency-Key": "b"})
        for _ in range(2)
    ]
    assert created[0].headers["location"] == created[1].headers["location"]
    assert created[1].headers["idempotent-replayed"] == "true"


def test_bytes_for_another_place_are_refused(app: App) -> None:
    path = begin(app)
    send(app, path, 0, CONTENT[:100])
    for wrong in (0, 99, 101):
        answer = send(app, path, wrong, b"x")
        assert (answer.status_code, answer.json()["code"]) == (409, "offset_mismatch")
        assert answer.headers["upload-offset"] == "100"
    assert send(app, path, 100, b"x", **{"Content-Type": "text/plain"}).status_code == 415
    assert app.request("PATCH", path, headers=BYTES, content=b"x").status_code == 400
    assert send(app, path, -1, b"x").status_code == 422
    too_much = send(app, path, 100, CONTENT)
    assert (too_much.status_code, too_much.json()["code"]) == (413, "too_large")

    async def of_unknown_length() -> Any:
        for start in range(0, len(CONTENT), 1000):
            yield CONTENT[start : start + 1000]

    assert send(app, path, 100, of_unknown_length()).status_code == 413
    assert offset_of(app, path) == 100


def test_an_empty_patch_and_an_empty_upload_are_fine(app: App) -> None:
    path = begin(app, 0)
    assert send(app, path, 0, b"").status_code == 204
    assert app.request("GET", path).json()["status"] == "finished"
    assert app.request("POST", "/v1/checkpoints", json=named(path)).json()["bytes"] == 0


@pytest.mark.parametrize("algorithm", ["crc32", "sha1", "sha256"])
def test_a_chunk_with_another_checksum_is_not_kept(app: App, tmp_path: Path, algorithm: str) -> None:
    path = begin(app)
    wrong = send(app, path, 0, CONTENT, **{"Upload-Checksum": checksum(algorithm, b"other")})
    assert (wrong.status_code, wrong.json()["code"]) == (460, "checksum_mismatch")
    assert (offset_of(app, path), parts(tmp_path)) == (0, [])
    right = send(app, path, 0, CONTENT, **{"Upload-Checksum": checksum(algorithm, CONTENT)})
    assert (right.status_code, offset_of(app, path)) == (204, len(CONTENT))
    for bad in ("md5 1B2M2Y8AsgTpgAmY7PhCfg==", "sha1", "sha256 !!", "sha1 AAAA", "crc32 AAAA"):
        assert send(app, path, len(CONTENT), b"", **{"Upload-Checksum": bad}).status_code == 400, bad


@pytest.mark.parametrize("by", ["metadata", "created", "used"])
def test_the_digest_of_the_whole_is_checked(app: App, tmp_path: Path, by: str) -> None:
    for announced, status in ((b"other", 422), (CONTENT, 201)):
        digest = hashlib.sha256(announced)
        header = {"Repr-Digest": f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"}
        metadata = {"Upload-Metadata": encode_metadata({"sha256": digest.hexdigest()})}
        path = finished(app, **({"metadata": metadata, "created": header, "used": {}}[by]))
        made = app.request("POST", "/v1/checkpoints", json=named(path), headers=header if by == "used" else {})
        assert made.status_code == status
        if status == 422:
            assert made.json()["code"] == "digest_mismatch"
            assert app.request("DELETE", path, headers=TUS).status_code == 204
    assert parts(tmp_path) == list((tmp_path / "blobs" / "tmp").iterdir()) == []
    assert app.request("GET", "/v1/checkpoints").json()["data"][0]["bytes"] == len(CONTENT)
    bad = {"Upload-Length": "5", "Upload-Metadata": encode_metadata({"sha256": "abc"})}
    assert app.request("POST", "/v1/uploads", headers=TUS | bad).status_code == 422


def test_creation_with_bytes_and_without_a_length(on_each: App) -> None:
    answer = on_each.request("POST", "/v1/uploads", content=CONTENT[:10], headers=BYTES | {"Upload-Defer-Length": "1"})
    assert (answer.status_code, answer.headers["upload-offset"], answer.json()["length"]) == (201, "10", None)
    path = answer.headers["location"]
    head = on_each.request("HEAD", path, headers=TUS).headers
    assert (head["upload-defer-length"], head.get("upload-length")) == ("1", None)
    assert on_each.request("POST", "/v1/checkpoints", json=named(path)).json()["code"] == "upload_not_finished"
    assert send(on_each, path, 10, b"", **{"Upload-Length": "5"}).status_code == 400
    assert send(on_each, path, 10, b"", **{"Upload-Length": "60001"}).status_code == 413
    assert send(on_each, path, 10, CONTENT[10:20], **{"Upload-Length": "20"}).status_code == 204
    assert send(on_each, path, 20, b"", **{"Upload-Length": "30"}).status_code == 400
    assert on_each.request("POST", "/v1/checkpoints", json=named(path)).json()["bytes"] == 20


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 400), ({"Upload-Length": "5", "Upload-Defer-Length": "1"}, 400), ({"Upload-Defer-Length": "2"}, 400),
     ({"Upload-Length": "60001"}, 413), ({"Upload-Length": "9" * 400}, 413), ({"Upload-Length": "-1"}, 422),
     ({"Upload-Length": "5", "Upload-Metadata": "a b c"}, 400), ({"Upload-Length": "5", "Upload-Metadata": "a !"}, 400),
     ({"Upload-Length": "5", "Upload-Metadata": "a YQ==,a YQ=="}, 400),
     ({"Upload-Length": "5", "Upload-Concat": "whole"}, 400), ({"Upload-Concat": "final;"}, 400),
     ({"Upload-Concat": "final;/v1/uploads/upload_1"}, 404), ({"Upload-Concat": "final;/v1/jobs/job_1"}, 400),
     ({"Upload-Length": "5", "Upload-Concat": "final;/v1/uploads/upload_1"}, 400)],
)  # fmt: skip
def test_what_makes_no_sense_creates_nothing(app: App, headers: dict[str, str], status: int) -> None:
    answer = app.request("POST", "/v1/uploads", headers=TUS | headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert app.request("GET", "/v1/uploads").json()["data"] == []


def test_partial_uploads_become_one(on_each: App, tmp_path: Path) -> None:
    partial = {"Upload-Concat": "partial"}
    one, two = begin(on_each, 6000, **partial), begin(on_each, len(CONTENT) - 6000, **partial)
    send(on_each, two, 0, CONTENT[6000:])
    final = TUS | {"Upload-Concat": f"final;{one} http://wbar{two}"}
    assert on_each.request("POST", "/v1/uploads", headers=final).json()["code"] == "upload_not_finished"
    send(on_each, one, 0, CONTENT[:2000])
    send(on_each, one, 2000, CONTENT[2000:6000])
    assert on_each.request("HEAD", one, headers=TUS).headers["upload-concat"] == "partial"
    assert on_each.request("POST", "/v1/checkpoints", json=named(one)).status_code == 409
    twice = TUS | {"Upload-Concat": f"final;{one} {one}"}
    assert on_each.request("POST", "/v1/uploads", headers=twice).status_code == 400
    whole = finished(on_each)
    mixed = TUS | {"Upload-Concat": f"final;{one} {whole}"}
    assert on_each.request("POST", "/v1/uploads", headers=mixed).status_code == 400
    answers = [on_each.request("POST", "/v1/uploads", headers=final) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    made = answers[0].headers["location"]
    assert made == answers[1].headers["location"], "a request whose answer was lost may come again"
    head = on_each.request("HEAD", made, headers=TUS).headers
    assert head["upload-length"] == head["upload-offset"] == str(len(CONTENT))
    assert head["upload-concat"] == f"final;{one} {two}"
    assert on_each.request("HEAD", one, headers=TUS).status_code == 404
    refused = send(on_each, made, len(CONTENT), b"")
    assert (refused.status_code, refused.json()["code"]) == (403, "upload_is_final")
    checkpoint = on_each.request("POST", "/v1/checkpoints", json=named(made)).json()
    assert checkpoint["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    on_each.request("DELETE", whole, headers=TUS)
    assert parts(tmp_path) == []


def test_an_upload_is_terminated(on_each: App, tmp_path: Path) -> None:
    path = begin(on_each)
    send(on_each, path, 0, CONTENT[:100])
    assert len(parts(tmp_path)) == 1
    gone = on_each.request("DELETE", path, headers=TUS)
    assert (gone.status_code, gone.content, parts(tmp_path)) == (204, b"", [])
    assert [on_each.request(one, path, headers=TUS).status_code for one in ("HEAD", "DELETE")] == [404, 404]
    assert send(on_each, path, 100, b"x").status_code == 404


def test_the_method_may_stand_in_a_header(app: App) -> None:
    path = begin(app)
    over = {"X-HTTP-Method-Override": "PATCH", "Upload-Offset": "0"}
    assert app.request("POST", path, content=CONTENT, headers=BYTES | over).status_code == 204
    reading = store_of(app).keys.create("reader", scopes=("read",)).key
    for method in ("GET", "POST"):
        over = {"X-HTTP-Method-Override": "DELETE"}
        assert app.request(method, path, headers=TUS | over, key=reading).status_code == 403
    assert app.request("POST", path, headers=TUS | {"X-HTTP-Method-Override": "DELETE"}).status_code == 204
    over = {"X-HTTP-Method-Override": "DELETE"}
    assert app.request("GET", "/v1/checkpoints", headers=over).status_code == 200, "for uploads only"


def test_another_tenants_upload_is_not_there(on_each: App) -> None:
    path, key = finished(on_each), other_key(on_each)
    for method in ("GET", "HEAD", "PATCH", "DELETE"):
        assert on_each.request(method, path, headers=BYTES | {"Upload-Offset": "0"}, key=key).status_code == 404
    partial = begin(on_each, 0, **{"Upload-Concat": "partial"})
    assert on_each.request("POST", "/v1/checkpoints", json=named(path), key=key).status_code == 404
    assert on_each.request("POST", "/v1/datasets", json=named(path), key=key).status_code == 404
    final = TUS | {"Upload-Concat": f"final;{partial}"}
    assert on_each.request("POST", "/v1/uploads", headers=final, key=key).status_code == 404
    assert on_each.request("GET", "/v1/uploads", key=key).json()["data"] == []
    assert len(on_each.request("GET", "/v1/uploads").json()["data"]) == 2


def test_unfinished_bytes_count_for_the_quota(tmp_path: Path) -> None:
    with (
        fresh_database(DATABASES[-1], tmp_path) as url,
        app_in(tmp_path, database_url=url, max_tenant_bytes=2000) as app,
    ):
        path = begin(app, 1500)
        assert send(app, path, 0, CONTENT[:1400]).status_code == 204
        for answer in (
            app.request("POST", "/v1/checkpoints", content=b"x" * 700),
            app.request("POST", "/v1/uploads", headers=TUS | {"Upload-Length": "700"}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
        other = begin(app, 550)
        assert send(app, path, 1400, CONTENT[:100]).status_code == 204
        refused = send(app, other, 0, CONTENT[:550])
        assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")

        async def of_unknown_length() -> Any:
            yield CONTENT[:550]

        assert send(app, other, 0, of_unknown_length()).json()["code"] == "quota_exceeded"
        assert len(parts(tmp_path)) == 2
        made = app.request("POST", "/v1/checkpoints", json=named(path))
        assert made.status_code == 201, "its bytes counted already"
        assert send(app, other, 0, CONTENT[:550]).status_code == 429
        app.request("DELETE", f"/v1/checkpoints/{made.json()['id']}")
        assert send(app, other, 0, CONTENT[:550]).status_code == 204


def test_an_upload_is_too_large_for_what_is_made_of_it(app: App) -> None:
    path = finished(app, os.urandom(55_000))
    refused = app.request("POST", "/v1/datasets", json=named(path))
    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
    assert app.request("POST", "/v1/checkpoints", json=named(path)).status_code == 201


def test_two_writers_at_one_place_do_not_both_win(on_each: App, tmp_path: Path) -> None:
    for _ in range(5):
        path, statuses = begin(on_each), list[int]()
        together = threading.Barrier(4)

        def write(path: str = path, together: threading.Barrier = together, statuses: list[int] = statuses) -> None:
            together.wait()
            statuses.append(send(on_each, path, 0, CONTENT).status_code)

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [204, 409, 409, 409]
        assert len(parts(tmp_path)) == 1
        assert on_each.request("DELETE", path, headers=TUS).status_code == 204


def test_two_requests_make_one_checkpoint_of_an_upload(on_each: App, tmp_path: Path) -> None:
    path, together, answers = finished(on_each), threading.Barrier(4), list[httpx.Response]()

    def name() -> None:
        together.wait()
        answers.append(on_each.request("POST", "/v1/checkpoints", json=named(path)))

    threads = [threading.Thread(target=name) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.status_code for one in answers) == [201, 409, 409, 409]
    assert len(on_each.request("GET", "/v1/checkpoints").json()["data"]) == 1
    assert parts(tmp_path) == list((tmp_path / "blobs" / "tmp").iterdir()) == []


def test_what_expires_is_swept(on_each: App, tmp_path: Path) -> None:
    store = store_of(on_each)
    kept, over = begin(on_each), begin(on_each)
    for path in (kept, over):
        send(on_each, path, 0, CONTENT[:100])
    store.tidy_uploads()
    assert len(parts(tmp_path)) == 2
    with store.database.write() as connection:
        mine = resumable_uploads.c.id == named(over)["upload"]
        connection.execute(update(resumable_uploads).where(mine).values(expires_at=now() - 1))
    store.tidy_uploads()
    assert on_each.request("HEAD", over, headers=TUS).status_code == 404
    assert (offset_of(on_each, kept), len(parts(tmp_path))) == (100, 1)
    stray = tmp_path / "blobs" / "parts" / ("ab" * 16)
    for path in (stray, stray.with_name(f"{stray.name}#1")):  # of a writer that was killed
        path.write_bytes(b"x")
    store.tidy_uploads()
    assert len(parts(tmp_path)) == 3, "they may still be written"
    for path in parts(tmp_path):
        os.utime(path, (0, 0))
    store.tidy_uploads()
    assert (offset_of(on_each, kept), len(parts(tmp_path))) == (100, 1), "its row names it, however old it is"


def test_metadata_goes_there_and_back() -> None:
    values = {"filename": "résumé, final.pth", "empty": "", "sha256": "ab" * 32}
    assert decode_metadata(encode_metadata(values)) == values
    assert decode_metadata("") == decode_metadata("  ") == {}
    assert decode_metadata("is_confidential,filename YQ==") == {"is_confidential": "", "filename": "a"}
