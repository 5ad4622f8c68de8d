"""What `wbar doctor` says: of a whole service, of one without workers, of an old database, of settings that clash."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Service
from wbar_service import host_checks
from wbar_store.database import Database
from wbar_store.migrate import downgrade, upgrade


def doctor(*options: str, folder: str | Path | None = None, **environment: str) -> tuple[int, str]:
    command = [str(Path(sys.executable).with_name("wbar")), "doctor", *options]
    done = subprocess.run(
        command, cwd=folder, env={"PATH": "/usr/bin", **environment}, capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_all_is_well(service: Service) -> None:
    code, said = doctor(**service.environment)
    assert code == 0, said
    lines = {line[9:].partition(":")[0]: line for line in said.splitlines()}
    assert all(line.startswith(("ok", "warning")) for line in lines.values()), said
    assert {
        "software",
        "versions",
        "devices",
        "clock",
        "database",
        "tables",
        "row security",
        "train workers",
        "ingest workers",
        "broker",
        "blobs",
    } <= set(lines)
    assert "train-" in lines["train workers"]
    assert "the CPU, " in lines["devices"] or "CUDA" in lines["devices"]
    assert "is not installed" not in said


def test_a_host_is_told_what_is_wrong_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(f"sqlite:///{tmp_path / 'wbar.db'}")
    assert host_checks.clock(database).verdict == "ok"
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 90)
    behind = host_checks.clock(database)
    monkeypatch.undo()
    database.dispose()
    assert (behind.verdict, behind.words) == ("warning", "90.0 s behind the database's")
    assert "chrony" in str(behind.fix)
    monkeypatch.setattr(host_checks, "LITTLE_SPACE", 1 << 60)
    assert "make room" in str(host_checks.disk("scratch", tmp_path / "not there yet").fix)
    monkeypatch.setattr(host_checks, "TORCH_SECONDS", 0.01)
    assert host_checks.torch_and_devices().words == "torch did not load within 0.01 s"
    monkeypatch.setattr(host_checks, "requires", lambda _: ["celery>=99; extra == 'store'", "nothing-like-it>=1"])
    (_, versions) = host_checks.software()
    assert (versions.verdict, versions.fix) == ("fault", "pip install 'celery>=99' 'nothing-like-it>=1'")
    assert "nothing-like-it is not installed" in versions.words


def test_without_parts_of_its_own_it_looks_at_the_service_of_the_command_line(service: Service, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "WBAR_URL": service.url, "WBAR_API_KEY": service.key}
    code, said = doctor("--json", folder=tmp_path, **home)
    assert code == 0, said
    found = {one["part"]: one for one in json.loads(said)}
    assert "answers, with wbar" in found["service"]["words"]
    assert {"database", "broker", "blobs", "train workers", "ingest workers", "API key"} <= set(found)
    assert {one["verdict"] for one in found.values()} <= {"ok", "warning"}
    assert "train-" in found["API key"]["words"]
    code, said = doctor(folder=tmp_path, **home | {"WBAR_API_KEY": "wbar_wrong"})
    assert code == 1
    assert "fault    API key: unauthorized" in said
    assert [*tmp_path.iterdir()] == [], "nothing was made"


@pytest.mark.long
def test_without_a_service_it_says_how_to_start_one_and_makes_nothing(tmp_path: Path) -> None:
    code, said = doctor(folder=tmp_path, HOME=str(tmp_path), WBAR_URL="http://127.0.0.1:9")
    assert code == 1
    assert "fault    service: http://127.0.0.1:9 does not answer" in said
    assert "start it with `wbar up`" in said
    url = f"sqlite:///{tmp_path / 'wbar.db'}"
    blobs = {"WBAR_BLOBS_URL": f"file://{tmp_path / 'blobs'}", "WBAR_BROKER_URL": "redis://127.0.0.1:1/0"}
    code, said = doctor(folder=tmp_path, HOME=str(tmp_path), WBAR_DATABASE_URL=url, **blobs)
    assert code == 1
    assert f"fault    database: {url} is not there: is WBAR_DATABASE_URL right? Then run `wbar migrate`" in said
    assert f"warning  blobs: file://{tmp_path / 'blobs'} is not there yet" in said
    assert [*tmp_path.iterdir()] == [], "nothing was made"


@pytest.mark.long
def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'wbar.db'}"
    environment = {
        "WBAR_DATABASE_URL": url,
        "WBAR_BROKER_URL": "redis://127.0.0.1:1/0",
        "WBAR_BLOBS_URL": f"file://{tmp_path / 'blobs'}",
        "WBAR_SCRATCH": str(tmp_path / "scratch"),
    }
    (tmp_path / "blobs").mkdir()
    database = Database(url)
    upgrade(database)
    downgrade(database, "0004")
    code, said = doctor(**environment)
    assert code == 1
    assert "run `wbar migrate`" in said
    assert "fault    broker: redis://127.0.0.1:1/0: " in said
    upgrade(database)
    database.dispose()
    code, said = doctor("--json", **environment)
    found = {finding["part"]: finding for finding in json.loads(said)}
    assert code == 1
    assert (found["train workers"]["verdict"], found["train workers"]["words"]) == ("fault", "none lives")
    assert found["train workers"]["fix"] == "start `wbar worker --queue train`"
    assert (found["blobs"]["verdict"], found["versions"]["verdict"], found["blobs"]["fix"]) == ("ok", "ok", None)
    code, said = doctor("--json", **environment, WBAR_DOWNLOADS="presigned")
    assert (code, json.loads(said)["code"]) == (1, "error")
    code, said = doctor(**environment, WBAR_DOWNLOADS="presigned")
    assert code == 1
    assert "WBAR_DOWNLOADS=presigned needs blobs in s3://" in said


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    code, said = doctor(
        WBAR_DATABASE_URL="postgresql://someone:secret@127.0.0.1:1/x",
        WBAR_BROKER_URL="redis://:secret@127.0.0.1:1/0",
        WBAR_BLOBS_URL=f"file://{tmp_path}",
        WBAR_SCRATCH=str(tmp_path),
    )
    assert code == 1
    assert "fault    database: postgresql+psycopg://someone:***@127.0.0.1:1/x" in said
    assert "secret" not in said
