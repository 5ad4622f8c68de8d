"""What `wbar doctor` says: of a whole service, of one without workers, of an old database, of settings that clash."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import Service
from wbar_store.database import Database
from wbar_store.migrate import downgrade, upgrade


def doctor(**environment: str) -> tuple[int, str]:
    command = [str(Path(sys.executable).with_name("wbar")), "doctor"]
    done = subprocess.run(command, env={"PATH": "/usr/bin", **environment}, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_all_is_well(service: Service) -> None:
    code, said = doctor(**service.environment)
    assert code == 0, said
    lines = {line[9:].partition(":")[0]: line for line in said.splitlines()}
    assert all(line.startswith(("ok", "warning")) for line in lines.values()), said
    assert {
        "software",
        "database",
        "tables",
        "row security",
        "train workers",
        "ingest workers",
        "broker",
        "blobs",
    } <= set(lines)
    assert "train-" in lines["train workers"]


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'wbar.db'}"
    environment = {
        "WBAR_DATABASE_URL": url,
        "WBAR_BROKER_URL": "redis://127.0.0.1:1/0",
        "WBAR_BLOBS_URL": f"file://{tmp_path / 'blobs'}",
        "WBAR_SCRATCH": str(tmp_path / "scratch"),
    }
    database = Database(url)
    upgrade(database)
    downgrade(database, "0004")
    code, said = doctor(**environment)
    assert code == 1
    assert "run `wbar migrate`" in said
    assert "fault    broker: redis://127.0.0.1:1/0: " in said
    upgrade(database)
    database.dispose()
    code, said = doctor(**environment)
    assert code == 1
    assert "fault    train workers: none lives: start `wbar worker --queue train`" in said
    assert "ok       blobs: " in said
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
