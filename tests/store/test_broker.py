"""wbar's Celery is told everything by wbar, and nothing by the project whose folder and environment it is started in."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from redis import Redis

from tests.conftest import wait_until
from tests.packaging.environments import Decoys
from wbar_service.embedded import broker_command
from wbar_store.broker import OwnCelery
from wbar_store.notifier import QUEUES, RUN_JOB, Notifier

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Decoys:
    """The current folder is a project that uses Django and Celery, and its variables are set."""
    decoys = Decoys(tmp_path)
    monkeypatch.chdir(decoys.folder)
    for name, value in (
        ("DJANGO_SETTINGS_MODULE", "settings"),
        ("CELERY_LOADER", "loader"),
        ("CELERY_CONFIG_MODULE", "celeryconfig"),
        ("CELERY_RESULT_BACKEND", "django-db"),
        ("CELERY_BROKER_URL", "redis://elsewhere/1"),
        ("CELERY_BROKER_READ_URL", "redis://elsewhere/2"),
        ("CELERY_BROKER_WRITE_URL", "redis://elsewhere/3"),
    ):
        monkeypatch.setenv(name, value)
    return decoys


def test_it_imports_nothing_of_the_current_folder(project: Decoys) -> None:
    app = OwnCelery("memory://ours", set_as_current=False)
    assert app.conf.task_ignore_result is False  # the settings are read now: Celery's own defaults
    assert app.backend.as_uri() == "disabled://"
    assert project.imported() == []


def test_its_broker_is_the_one_that_it_was_given(project: Decoys) -> None:
    app = OwnCelery("redis://ours:6379/0", set_as_current=False)
    for connect in (app.connection, app.connection_for_read, app.connection_for_write):
        assert connect().hostname == "ours"
    with app.pool.acquire() as connection:
        assert connection.hostname == "ours"
    assert app.connection_for_write("redis://named:6379/0").hostname == "named"
    app.close()


@contextmanager
def production_broker(folder: Path) -> Iterator[Path]:
    """Valkey with the options of docker-compose.yml, on a socket; killed at the end, as by a power cut."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    options = compose["services"]["valkey"]["command"][1:]
    path = folder / "valkey.sock"
    path.unlink(missing_ok=True)
    listening = ["--port", "0", "--unixsocket", str(path), "--dir", str(folder)]
    process = subprocess.Popen(
        [*broker_command(), *options, *listening], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(path.exists, 20, "the broker's socket")
        yield path
    finally:
        process.kill()
        process.wait()


def test_a_broker_with_the_options_of_compose_forgets_nothing_when_it_is_killed(tmp_path: Path) -> None:
    with production_broker(tmp_path) as path, Notifier(f"redis+socket://{path}") as notifier:
        assert all(notifier.notify(RUN_JOB, f"job_{number}") for number in range(20))
    with production_broker(tmp_path) as path, Notifier(f"redis+socket://{path}") as notifier:
        assert notifier.waiting(QUEUES[RUN_JOB]) == 20


def test_a_full_broker_refuses_a_message_and_drops_none(tmp_path: Path) -> None:
    with production_broker(tmp_path) as path, Notifier(f"redis+socket://{path}") as notifier:
        with Redis(unix_socket_path=str(path)) as redis:
            used = int(redis.info("memory")["used_memory"])  # type: ignore[index]
            redis.config_set("maxmemory", used + 400_000)
            taken = 0
            while notifier.notify(RUN_JOB, f"job_{taken}") and taken < 5000:
                taken += 1
            assert 0 < taken < 5000
            assert not notifier.notify(RUN_JOB, "job_more")
            redis.config_set("maxmemory", 0)
        assert notifier.waiting(QUEUES[RUN_JOB]) == taken
        assert notifier.notify(RUN_JOB, "job_more")
