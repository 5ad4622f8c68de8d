"""Each page is done as its reader would, with a real service: its files, its shell blocks, its Python blocks."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import DATABASES, Broker, Service, fresh_database, wait_until
from tests.docs.scenarios import SCENARIOS

QUICK = {"docs/averaging.md"}
PAGES = [pytest.param(page, marks=[] if page in QUICK else pytest.mark.long) for page in SCENARIOS]


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that is set up as the tutorial for a team says."""
    folder = tmp_path_factory.mktemp("documented")
    settings = {"WBAR_WEBHOOKS_ALLOW": '["127.0.0.0/8"]', "WBAR_METRICS_TOKEN": "of-the-scraper"}
    with fresh_database(DATABASES[-1], folder) as url:
        broker = Broker()
        broker.start()
        service = Service(folder, url, broker, **settings)
        service.start()
        yield service
        service.stop()
        broker.kill()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_shows(page: str, documented: Service, tmp_path: Path) -> None:
    scenario = SCENARIOS[page](documented, tmp_path)
    scenario.write_files(tmp_path)
    if scenario.blocks("sh"):
        scenario.run_shell(tmp_path, documented)
    if scenario.blocks("python"):
        scenario.run_python(tmp_path, documented)


@pytest.mark.long
def test_the_receiver_of_the_tutorial_prints_what_the_service_sends(documented: Service, tmp_path: Path) -> None:
    SCENARIOS["docs/tutorials/team.md"](documented, tmp_path).write_files(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with documented.client() as client:
        webhook = client.webhooks.create(f"http://127.0.0.1:{port}/wbar", events=["job.*"])
        assert webhook.secret is not None
        receiver = subprocess.Popen(
            [sys.executable, "-P", str(tmp_path / "receiver.py")],
            env=os.environ | {"PORT": str(port), "WBAR_WEBHOOK_SECRET": webhook.secret},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            wait_until(lambda: _listens(port), 30, "the receiver")
            assert httpx.post(f"http://127.0.0.1:{port}/", content=b"{}").status_code == 401
            client.webhooks.ping(webhook.id)
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == f"webhook.ping {webhook.id}\n"
        finally:
            receiver.terminate()
            receiver.communicate()
            client.webhooks.delete(webhook.id)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
