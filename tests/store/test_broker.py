"""wbar's Celery is told everything by wbar, and nothing by the project whose folder and environment it is started in."""

from pathlib import Path

import pytest

from tests.packaging.environments import Decoys
from wbar_store.broker import OwnCelery


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
