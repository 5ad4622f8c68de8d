"""`wbar up`: one command, one terminal; what dies is started again, what is stopped goes on at the next start."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.material import write_archive, write_start
from wbar.client import Client
from wbar.config import read
from wbar.errors import Unreachable

METHOD = {"cycles": 60, "high": {"lr": 0.02}, "low": {"lr": 0.002}}


class Up:
    """A running `wbar up` with its own folder and configuration file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "client" / "config.toml"
        self.out = folder / "out"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *more: str) -> "subprocess.Popen[bytes]":
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WBAR_")}
        words = ["up", "--port", "0", "--data", str(self.folder / "data"), *more]
        command = [sys.executable, "-P", "-m", "wbar.cli", *words]
        with open(self.out, "ab") as out:
            process = subprocess.Popen(
                command,
                env=environment | {"WBAR_CONFIG": str(self.config), "WBAR_THREADS": "1"},
                stdout=out,
                stderr=out,
            )
        self.processes.append(process)
        return process

    def said(self, pattern: str, times: int = 1) -> bool:
        # Rich breaks lines at 80 columns where there is no terminal.
        text = " ".join(self.out.read_text().split())
        return len(re.findall(pattern, text)) >= times

    def client(self, monkeypatch: pytest.MonkeyPatch) -> Client:
        monkeypatch.setenv("WBAR_CONFIG", str(self.config))
        return Client()

    def descendants(self) -> list[int]:
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                if fields[0] != "Z":
                    parents[int(entry.name)] = int(fields[1])
        found = {process.pid for process in self.processes}
        while True:
            more = {pid for pid, parent in parents.items() if parent in found} - found
            if not more:
                return sorted(found - {process.pid for process in self.processes})
            found |= more

    def stop(self) -> int:
        self.processes[-1].send_signal(signal.SIGINT)
        return self.processes[-1].wait(60)


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Up]:
    for name in ("WBAR_URL", "WBAR_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    made = Up(tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def test_one_command_from_nothing_to_a_job_that_survives_a_restart(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    up.start()
    wait_until(lambda: up.said("workers ready"), 60, "readiness")
    assert up.said("wbar is up at http://127.0.0.1:[0-9]+")
    assert stat.S_IMODE(up.config.stat().st_mode) == 0o600
    with up.client(monkeypatch) as client:
        key, first_url = read().api_key, read().url
        checkpoint = client.checkpoints.create(write_start(up.folder))
        dataset = client.datasets.create(write_archive(up.folder))
        job = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, method=METHOD)
        wait_until(lambda: (client.jobs.get(job.id).progress or Nowhere).step > 20, 60, "the first steps")
    children = up.descendants()
    assert len(children) >= 7
    assert up.stop() == 0
    assert up.said(r"stopped; 1 job\(s\) will go on at the next start")
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()], "no child is left"
    assert key not in up.out.read_text()
    assert key not in (up.folder / "data" / "wbar.log").read_text()

    up.start()
    wait_until(lambda: up.said("workers ready", times=2), 60, "readiness again")
    with up.client(monkeypatch) as client:
        assert read().api_key == key
        assert read().url != first_url
        wait_until(lambda: client.jobs.get(job.id).attempts == 2, 30, "the second attempt")
        log = [event.data["message"] for event in client.jobs.event_list(job.id, limit=100).data if event.type == "log"]
        wait_until(lambda: client.jobs.get(job.id).progress.step > 60, 60, "further steps")
        client.jobs.cancel(job.id)
        assert client.jobs.get(job.id).status == "cancelled"
        assert isinstance(log, list)
    assert up.stop() == 0


@pytest.mark.long
def test_a_part_that_dies_is_started_again_and_said_so(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    up.start()
    wait_until(lambda: up.said("workers ready"), 60, "readiness")
    with up.client(monkeypatch) as client:
        checkpoint = client.checkpoints.create(write_start(up.folder))
        dataset = client.datasets.create(write_archive(up.folder))
        job = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, method={**METHOD, "cycles": 20})
        wait_until(lambda: (client.jobs.get(job.id).progress or Nowhere).step > 20, 60, "the first steps")
        for name, mark in (
            ("train worker", "-m wbar_worker train"),  # first: the job must not have ended before
            ("valkey", "valkey-server"),
            ("api", "-m wbar_service"),
        ):
            os.kill(child(up, mark), signal.SIGKILL)
            wait_until(
                lambda name=name: up.said(rf"the {name} ended \(killed by SIGKILL\): it is started again"), 20, name
            )
        wait_until(lambda: answers(client, job.id), 30, "the API")
        ended = client.jobs.wait(job.id, timeout=120)
        assert (ended.status, ended.attempts) == ("succeeded", 2)
    assert up.stop() == 0


def answers(client: Client, job_id: str) -> bool:
    try:
        client.jobs.get(job_id)
    except Exception:
        return False
    return True


def child(up: Up, mark: str) -> int:
    for pid in up.descendants():
        if mark in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode():
            return pid
    raise AssertionError(f"no process {mark}")


@pytest.mark.long
def test_killed_outright_it_leaves_nothing_running(up: Up) -> None:
    process = up.start()
    wait_until(lambda: up.said("workers ready"), 60, "readiness")
    children = up.descendants()
    process.kill()
    process.wait()
    wait_until(lambda: not [pid for pid in children if running(pid)], 60, "the end of every child")


@pytest.mark.long
def test_an_api_that_hangs_is_started_again(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    up.start()
    wait_until(lambda: up.said("workers ready"), 60, "readiness")
    os.kill(child(up, "-m wbar_service"), signal.SIGSTOP)
    wait_until(lambda: up.said(r"the api has not answered for \d+ s: it is ended"), 60, "the end of its patience")
    with up.client(monkeypatch) as client:
        wait_until(lambda: lists(client), 60, "an answer")
    assert up.stop() == 0


def lists(client: Client) -> bool:
    try:
        return client.jobs.list().data == []
    except Unreachable:
        return False


@pytest.mark.long
def test_a_half_done_job_is_finished_from_a_backup_to_the_same_bits(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    up.start()
    wait_until(lambda: up.said("workers ready"), 60, "readiness")
    backup, again = up.folder / "backup", up.folder / "again"
    with up.client(monkeypatch) as client:
        checkpoint = client.checkpoints.create(write_start(up.folder))
        dataset = client.datasets.create(write_archive(up.folder))
        job = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, method={**METHOD, "cycles": 8})
        wait_until(lambda: len(client.jobs.snapshots(job.id)) > 1, 60, "the second snapshot")
        assert command("backup", backup, "--data", up.folder / "data").returncode == 0
        whole = client.jobs.wait(job.id, timeout=120)
        assert whole.result is not None
    assert up.stop() == 0
    assert command("restore", backup, "--data", again).returncode == 0
    refused = command("restore", backup, "--data", again)
    assert refused.returncode == 1
    assert "is there already" in refused.stderr

    up.start("--data", str(again))
    wait_until(lambda: up.said("workers ready", times=2), 60, "readiness again")
    with up.client(monkeypatch) as client:
        ended = client.jobs.wait(job.id, timeout=120)
        assert ended.result is not None
        assert ended.attempts == 2
        assert ended.result.weights.sha256 == whole.result.weights.sha256
        assert [one.sha256 for one in client.jobs.snapshots(job.id)] != []
    assert up.stop() == 0


def command(*words: object) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-P", "-m", "wbar.cli", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


@pytest.mark.long
def test_only_its_owner_reads_what_it_keeps(up: Up) -> None:
    (up.folder / "data").mkdir(mode=0o755)
    up.start()
    wait_until(lambda: up.said("workers ready"), 60, "readiness")
    found = [up.folder / "data", *(up.folder / "data").rglob("*")]
    assert len(found) > 5
    assert [path for path in found if not path.is_socket() and stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    assert up.stop() == 0


def test_what_a_killed_start_left_in_the_temporary_folder_is_gone_after_the_next(up: Up) -> None:
    deep = up.folder / ("x" * 90)  # too deep for a socket
    left: list[Path] = []

    def has_started() -> bool:
        noted = Path((deep / "socket-folder").read_text()) if (deep / "socket-folder").exists() else None
        if noted is None or noted in left or not (noted / "valkey.sock").exists():
            return False
        left.append(noted)
        return True

    for _ in range(2):
        process = up.start("--data", str(deep))
        wait_until(has_started, 60, "the broker's socket")
        process.kill()
        process.wait()
    assert not left[0].exists()
    wait_until(lambda: not up.descendants(), 60, "the end of every child")
    shutil.rmtree(left[1])


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--port", "99999"), "less than or equal to 65535"), (("--data", "FILE"), "cannot hold the data"),
     (("--workers", "0"), "greater than or equal to 1")],
)  # fmt: skip
def test_what_cannot_start_says_why_in_a_line(up: Up, words: tuple[str, ...], said: str) -> None:
    (up.folder / "file").touch()
    process = up.start(*(str(up.folder / "file") if word == "FILE" else word for word in words))
    assert process.wait(60) in (1, 2)
    assert up.said(said)
    assert "Traceback" not in up.out.read_text()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.long
def test_two_on_one_folder_or_one_port_are_refused_in_one_line(up: Up) -> None:
    up.start()
    wait_until(lambda: up.config.exists(), 60, "the configuration")
    second = up.start()
    assert second.wait(60) == 1
    assert up.said("another wbar up is running on")
    port = read_port(up.config)
    third = up.start("--port", port, "--data", str(up.folder / "other"))
    assert third.wait(60) == 1
    assert up.said(f"cannot listen on 127.0.0.1:{port}")
    assert "Traceback" not in up.out.read_text()


def read_port(config: Path) -> str:
    found = re.search(r":(\d+)", config.read_text())
    assert found is not None
    return found.group(1)


class Nowhere:
    step = -1
