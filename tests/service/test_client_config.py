"""`wbar up` tells clients where it is, and leaves a configuration alone that leads somewhere else."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from wbar import config
from wbar_service import client_config
from wbar_store.blobs import Blobs
from wbar_store.database import Database
from wbar_store.migrate import upgrade
from wbar_store.store import Store

HERE = "http://127.0.0.1:8000"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WBAR_CONFIG", str(tmp_path / "client" / "config.toml"))
    return tmp_path / "client" / "config.toml"


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[tuple[Path, Store]]]:
    """Two data folders with their stores."""
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        database = Database(f"sqlite:///{tmp_path / name / 'wbar.db'}")
        upgrade(database)
        made.append((tmp_path / name, Store(database, Blobs((tmp_path / name / "blobs").as_uri(), database), None)))  # type: ignore[arg-type]
    yield made
    for _, store in made:
        store.database.dispose()


def test_a_second_service_leaves_the_configuration_of_the_first(mine: Path, stores: list[tuple[Path, Store]]) -> None:
    (one, first), (two, second) = stores
    written = client_config.write(one, HERE, first)
    assert (written.path, written.words) == (mine, [])
    assert stat.S_IMODE(mine.stat().st_mode) == 0o600
    before = mine.read_text()
    other = client_config.write(two, "http://127.0.0.1:9000", second)
    assert mine.read_text() == before
    assert other.path == two / "config.toml"
    assert stat.S_IMODE(other.path.stat().st_mode) == 0o600
    assert other.words == [
        f"{mine} leads to {HERE} (data in {one}), and stays as it is",
        f"for this service: export WBAR_CONFIG={two / 'config.toml'}",
    ]
    assert config.read(other.path) == config.Config("http://127.0.0.1:9000", other.api_key, str(two))
    assert second.keys.valid(other.api_key) is not None
    # At its next start it has the same key; the first one, at another port, says what it replaces.
    assert client_config.write(two, "http://127.0.0.1:9000", second).api_key == other.api_key
    again = client_config.write(one, "http://127.0.0.1:8001", first)
    assert (again.api_key, again.words) == (written.api_key, [f"it led to {HERE} before"])
    assert config.read().url == "http://127.0.0.1:8001"


def test_a_configuration_that_somebody_wrote_by_hand_stays(mine: Path, stores: list[tuple[Path, Store]]) -> None:
    mine.parent.mkdir()
    mine.write_text('url = "https://wbar.example"\napi_key = "wbar_theirs"\n')
    (one, first), _ = stores
    written = client_config.write(one, HERE, first)
    assert written.path == one / "config.toml"
    assert config.read().url == "https://wbar.example"


def test_what_was_ours_is_written_again(mine: Path, stores: list[tuple[Path, Store]], tmp_path: Path) -> None:
    (one, first), (two, second) = stores
    key = client_config.write(one, HERE, first).api_key
    # The folder was deleted and begins anew: its key stays, so that clients need nothing new.
    assert client_config.write(one, HERE, second).api_key == key
    # It was moved, or restored elsewhere: the key opens it.
    assert client_config.write(two, HERE, second).path == mine
    assert config.read().data == str(two)
    # Version 0.6 wrote no folder; the address is the same.
    mine.write_text(f'url = "{HERE}"\napi_key = "wbar_revoked"\n')
    replaced = client_config.write(one, HERE, first)
    assert replaced.words == ["the API key that was there opens nothing here: it is replaced"]
    # A folder that is gone keeps nothing.
    mine.write_text(f'url = "http://127.0.0.1:1"\napi_key = "wbar_old"\ndata = "{tmp_path / "gone"}"\n')
    assert client_config.write(one, HERE, first).path == mine
