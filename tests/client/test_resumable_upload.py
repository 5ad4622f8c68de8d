"""A file comes whole to a service over connections that break, an API that is killed, and a client that is started anew."""

import asyncio
import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.client.cutting import relay
from tests.conftest import Service
from tests.service.app import app_in
from wbar import config, resumable_upload
from wbar.errors import DigestMismatch, NotFound, QuotaExceeded, Unauthorized, Unreachable
from wbar.resumable_upload import Answer, Memory, NoAnswer, Request, Sending

MIB = 1024**2


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_CHUNK", "MOST_CHUNK"):
        monkeypatch.setattr(resumable_upload, name, MIB)
    monkeypatch.setattr(resumable_upload, "LEAST_CHUNK", MIB // 8)


def file_of(tmp_path: Path, size: int = 6 * MIB + 5) -> Path:
    path = tmp_path / "weights.pth"
    path.write_bytes(os.urandom(size))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def drive(http: httpx.Client, sending: Sending, asked: list[Request] | None = None) -> dict[str, Any]:
    """Send what is to be sent, as a client with threads does; returns what was created."""
    request = sending.begin()
    while request is not None:
        time.sleep(request.after)
        if asked is not None:
            asked.append(request)
        try:
            response = http.request(
                request.method, request.path, params=request.params, headers=request.headers, content=request.content,
                timeout=request.timeout or 20,
            )  # fmt: skip
            answer: Answer | NoAnswer = Answer(response.status_code, response.headers, response.content)
        except httpx.TransportError as error:
            answer = NoAnswer(str(error))
        request = sending.go_on(answer)
    assert sending.answer is not None
    created: dict[str, Any] = httpx.Response(201, content=sending.answer.content).json()
    return created


def sending_of(path: Path, url: str, **options: Any) -> Sending:
    return Sending(path, "/v1/checkpoints", {"name": "mine", "num_classes": 10}, service=url, **options)


@pytest.mark.usefixtures("small_chunks")
def test_a_file_arrives_in_chunks(service: Service, tmp_path: Path, own_state: Path) -> None:
    path, asked, steps = file_of(tmp_path), list[Request](), list[tuple[int, int]]()
    with service.http() as http:
        made = drive(http, sending_of(path, service.url, step=lambda *step: steps.append(step)), asked)
        assert (made["object"], made["name"], made["sha256"]) == ("checkpoint", "mine", sha256(path))
        size = path.stat().st_size
        assert [len(one.content) for one in asked if one.method == "PATCH"] == [MIB] * 6 + [5]
        assert (steps[0], steps[-1]) == ((0, size), (size, size))
        assert list((own_state / "wbar" / "uploads").iterdir()) == [], "nothing to remember any more"
        data = Sending(path, "/v1/datasets", {}, service=service.url)
        assert drive(http, data)["name"] == "weights.pth"


@pytest.mark.usefixtures("small_chunks")
def test_connections_that_break_cost_a_chunk(service: Service, tmp_path: Path) -> None:
    path, asked = file_of(tmp_path), list[Request]()
    with relay(service.port, [MIB + MIB // 2, 400_000, 300_000, 2 * MIB]) as broken:
        headers = {"Authorization": f"Bearer {service.key}"}
        with httpx.Client(base_url=broken.url, headers=headers, trust_env=False) as http:
            made = drive(http, sending_of(path, broken.url), asked)
        assert broken.cut == 4
    assert made["sha256"] == sha256(path)
    lengths = [len(one.content) for one in asked if one.method == "PATCH"]
    assert sum(lengths) < path.stat().st_size + 4 * MIB
    assert min(lengths[:-1]) < MIB, "less at a time where a connection breaks"


@pytest.mark.usefixtures("small_chunks")
def test_an_api_that_is_killed_and_started_again_is_gone_on_with(breakable: Service, tmp_path: Path) -> None:
    breakable.start("api")
    path, asked, kills = file_of(tmp_path), list[Request](), [3 * MIB, MIB]

    def kill(done: int, _: int) -> None:
        if kills and done >= kills[-1]:
            kills.pop()
            breakable.signal("api", signal.SIGKILL)
            breakable.start("api")

    with breakable.http() as http:
        made = drive(http, sending_of(path, breakable.url, step=kill), asked)
    assert (made["sha256"], kills) == (sha256(path), [])
    assert len([one for one in asked if one.path == "/v1/uploads"]) == 1


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("stopped", [b"PATCH", b"POST"])
def test_a_client_that_is_started_anew_goes_on(service: Service, tmp_path: Path, stopped: bytes) -> None:
    path, asked = file_of(tmp_path), list[Request]()

    class Stopped(Exception):
        pass

    class StoppingClient(httpx.Client):
        def request(self, method: str, *arguments: Any, **options: Any) -> httpx.Response:  # type: ignore[override]
            sent.append(method)
            response = super().request(method, *arguments, **options)
            if sent.count("PATCH") == (4 if stopped == b"PATCH" else 7) and (stopped == b"PATCH" or method == "POST"):
                raise Stopped  # the answer came, and nobody was there any more
            return response

    sent: list[str] = []
    headers = {"Authorization": f"Bearer {service.key}"}
    with (
        StoppingClient(base_url=service.url, headers=headers, trust_env=False) as http,
        pytest.raises(Stopped),
    ):
        drive(http, sending_of(path, service.url))
    with service.http() as http:
        before = http.get("/v1/checkpoints").json()["data"]
        copy = path.rename(tmp_path / "moved.pth")
        made = drive(http, sending_of(copy, service.url), asked)
        assert made["sha256"] == sha256(copy)
        sent_again = sum(len(one.content) for one in asked if one.method == "PATCH")
        assert sent_again == (copy.stat().st_size - 4 * MIB if stopped == b"PATCH" else 0)
        if stopped == b"POST":
            assert made["id"] in [one["id"] for one in before], "the same checkpoint, not a second one"


@pytest.mark.usefixtures("small_chunks")
def test_a_file_that_changes_while_it_is_sent_is_noticed(service: Service, tmp_path: Path, own_state: Path) -> None:
    path = file_of(tmp_path)

    def change(done: int, _: int) -> None:
        if done == 2 * MIB:
            with open(path, "r+b") as file:
                file.seek(5 * MIB)
                file.write(b"changed")

    with service.http() as http:
        with pytest.raises(DigestMismatch, match="announced"):
            drive(http, sending_of(path, service.url, step=change))
        assert list((own_state / "wbar" / "uploads").iterdir()) == []
        assert drive(http, sending_of(path, service.url))["sha256"] == sha256(path)

        def cut(done: int, _: int) -> None:
            if done == 2 * MIB:
                os.truncate(path, 3 * MIB)

        with pytest.raises(DigestMismatch, match="shorter"):
            drive(http, sending_of(path, service.url, step=cut))


@pytest.mark.usefixtures("small_chunks")
def test_an_upload_that_was_deleted_meanwhile_begins_anew(service: Service, tmp_path: Path) -> None:
    path, asked = file_of(tmp_path, 3 * MIB), list[Request]()
    with service.http() as http:

        def delete(done: int, _: int) -> None:
            created = [one for one in asked if one.path == "/v1/uploads"]
            if done == MIB and len(created) == 1:
                newest = http.get("/v1/uploads").json()["first_id"]
                http.delete(f"/v1/uploads/{newest}", headers={"Tus-Resumable": "1.0.0"}).raise_for_status()

        made = drive(http, sending_of(path, service.url, step=delete), asked)
    assert made["sha256"] == sha256(path)
    assert len([one for one in asked if one.path == "/v1/uploads"]) == 2


def test_a_chunk_has_the_cheapest_checksum_that_the_service_knows(tmp_path: Path) -> None:
    """Also where an API process of a version before answers in the middle."""
    path = file_of(tmp_path, 5000)
    for announced, refused, expected in (
        ("sha1,sha256", False, ["sha256"]),
        ("crc32,sha1,sha256", False, ["crc32"]),
        ("crc32,sha1,sha256", True, ["crc32", "sha256"]),
    ):
        sending, used = sending_of(path, "http://wbar"), list[str]()
        begun = sending.begin()
        assert begun is not None
        assert begun.path == "/v1/uploads"
        headers = {"Location": "/v1/uploads/upload_1", "Tus-Checksum-Algorithm": announced}
        request = sending.go_on(Answer(201, headers, b""))
        while request is not None and request.method == "PATCH":
            used.append(request.headers["Upload-Checksum"].split()[0])
            unknown = refused and used[-1] == "crc32"
            answer = Answer(400, {}, b"{}") if unknown else Answer(204, {"Upload-Offset": "5000"}, b"")
            request = sending.go_on(answer)
        assert used == expected
        assert request is not None
        assert sending.go_on(Answer(201, {}, b"made")) is None


def test_what_is_refused_is_raised(service: Service, tmp_path: Path) -> None:
    path = file_of(tmp_path, 5000)
    with service.http("wrong") as http, pytest.raises(Unauthorized):
        drive(http, sending_of(path, service.url))
    nobody = "http://127.0.0.1:9"
    with httpx.Client(base_url=nobody, trust_env=False) as http, pytest.raises(Unreachable, match=r"for 0\.5 s"):
        drive(http, sending_of(path, nobody, patience=0.5))
    with service.http() as http, pytest.raises(NotFound, match="there is nothing at"):
        drive(http, Sending(path, "/v1/nothing", {}, service=service.url))


def test_a_client_with_an_event_loop_does_the_same(tmp_path: Path) -> None:
    """And a limit of requests is waited for, a full quota is not."""
    path = file_of(tmp_path, 5000)

    async def run(app: Any, key: str) -> Any:
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://wbar", headers=headers) as http:
            sending = sending_of(path, "http://wbar")
            request = await asyncio.to_thread(sending.begin)
            while request is not None:
                waits.append(request.after)
                await asyncio.sleep(0)  # the clock below stands in for the wait
                response = await http.request(
                    request.method,
                    request.path,
                    params=request.params,
                    headers=request.headers,
                    content=request.content,
                )
                if response.status_code == 429:
                    app.state.limits._writes = None  # a minute has passed
                answer = Answer(response.status_code, response.headers, response.content)
                request = await asyncio.to_thread(sending.go_on, answer)
            assert sending.answer is not None
            return sending.answer

    waits: list[float] = []
    with app_in(tmp_path, writes_per_minute=2) as app:
        answer = asyncio.run(run(app.asgi, app.key))
        assert answer.status == 201
        assert [wait > 0 for wait in waits] == [False, False, False, True], "the third change was one too many"
    (tmp_path / "full").mkdir()
    with app_in(tmp_path / "full", max_tenant_bytes=100) as app, pytest.raises(QuotaExceeded):
        asyncio.run(run(app.asgi, app.key))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"upload": 5}', '{"upload": "../../v1/keys"}', "\0"])
def test_a_memory_that_makes_no_sense_is_none(content: str, own_state: Path) -> None:
    memory = Memory.of("http://wbar/", "ab" * 32, 5)
    assert memory == Memory.of("http://wbar", "ab" * 32, 5) != Memory.of("http://wbar", "ab" * 32, 6)
    assert memory.path.is_relative_to(config.state_folder())
    memory.write("upload_1")
    assert memory.read() == "upload_1"
    memory.path.write_text(content)
    assert memory.read() is None
    memory.forget()
    memory.forget()
    assert list(memory.path.parent.iterdir()) == []


def test_where_nothing_can_be_remembered_files_are_sent_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a file"))
    path = file_of(tmp_path, 5000)
    with service.http() as http:
        assert drive(http, sending_of(path, service.url))["sha256"] == sha256(path)
