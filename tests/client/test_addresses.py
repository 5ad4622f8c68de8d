"""The address and the key are checked before anything is sent, and a key is never repeated."""

import pytest

from tests.client.test_cli import wbar
from tests.conftest import Service
from wbar import Client


@pytest.mark.parametrize("url", ["notaurl", "ftp://x", "http://", "127.0.0.1:8000"])
def test_what_is_no_address_is_wrong_usage(url: str) -> None:
    done = wbar(None, "jobs", WBAR_URL=url, WBAR_API_KEY="x")
    assert (done.returncode, "no address of a service" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


@pytest.mark.parametrize("key", ["SECRET KEY", "SECRET\nKEY", "SECRETé", "SECRET\x7f"])
def test_what_is_no_key_is_wrong_usage_and_is_not_shown(key: str) -> None:
    done = wbar(None, "jobs", WBAR_URL="http://127.0.0.1:9", WBAR_API_KEY=key)
    assert (done.returncode, "of the API key" in done.stderr, "SECRET" in done.stderr) == (2, True, False)
    with pytest.raises(ValueError, match="of the API key") as raised:
        Client("http://127.0.0.1:9", key)
    assert "SECRET" not in str(raised.value)


def test_a_key_from_a_file_may_end_with_its_line(service: Service) -> None:
    with Client(service.url, f" {service.key}\n") as client:
        assert client.jobs.list(limit=1).object == "list"
