"""The client: typed errors, downloads that resume and are verified, a stream that survives the service."""

import signal
import threading
import zipfile
from pathlib import Path

import pytest

from tests.conftest import Service, wait_until
from tests.material import write_archive, write_start
from wbar.client import Client
from wbar.errors import (
    ArchitectureMismatch,
    CorruptFile,
    DigestMismatch,
    NotFound,
    Unauthorized,
    Unreachable,
    ValidationFailed,
)

METHOD = {"cycles": 2, "high": {"lr": 0.02}, "low": {"lr": 0.002}}


def test_problems_are_raised_as_the_class_of_their_code(service: Service, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"bad")
    with service.client() as client:
        with pytest.raises(NotFound, match="job_none"):
            client.jobs.get("job_none")
        with pytest.raises(ValidationFailed) as caught:
            client.jobs.create(checkpoint="c", dataset="d", method={"cycles": 0})
        assert caught.value.errors[0]["pointer"] == "/method/cycles"
        with pytest.raises(CorruptFile):
            client.checkpoints.create(tmp_path / "bad")
        with pytest.raises(ArchitectureMismatch, match="missing"):
            client.checkpoints.create(write_start(tmp_path), architecture="resnet18")
    with service.client(key="wrong") as stranger, pytest.raises(Unauthorized):
        stranger.jobs.list()
    with Client("http://127.0.0.1:9", "x") as client, pytest.raises(Unreachable, match="wbar up"):
        client.jobs.list()


def test_a_folder_of_images_is_uploaded_as_it_lies(service: Service, tmp_path: Path) -> None:
    with zipfile.ZipFile(write_archive(tmp_path)) as archive:
        archive.extractall(tmp_path / "digits")
    with service.client() as client:
        first, second = (client.datasets.create(tmp_path / "digits") for _ in range(2))
    assert first.name == "digits"
    assert first.splits["train"].images == 120
    assert first.sha256 == second.sha256


def test_a_download_goes_on_where_it_stopped_and_is_verified(service: Service, tmp_path: Path) -> None:
    path, out = write_start(tmp_path), tmp_path / "out"
    content = path.read_bytes()
    with service.client() as client:
        made = client.checkpoints.create(path)
        part, mark = tmp_path / "out.part", tmp_path / "out.part.etag"
        part.write_bytes(content[:500_000])
        mark.write_text(f'"{made.sha256}"')
        seen: list[tuple[int, int]] = []
        client.checkpoints.download(made.id, out, step=lambda done, total: seen.append((done, total)))
        assert out.read_bytes() == content
        assert seen[0] == (500_000, len(content))
        assert seen[-1] == (len(content), len(content))
        assert not part.exists()
        assert not mark.exists()

        part.write_bytes(content[:500_000])
        mark.write_text('"of another version"')
        client.checkpoints.download(made.id, tmp_path / "out")
        assert out.read_bytes() == content

        part.write_bytes(b"x" + content[1:500_000])
        mark.write_text(f'"{made.sha256}"')
        with pytest.raises(DigestMismatch, match="thrown away"):
            client.checkpoints.download(made.id, out)
        assert not part.exists()


@pytest.mark.long
def test_an_event_stream_survives_a_restart_of_the_api(breakable: Service, tmp_path: Path) -> None:
    breakable.start()
    with breakable.client() as client:
        checkpoint = client.checkpoints.create(write_start(tmp_path))
        dataset = client.datasets.create(write_archive(tmp_path))
        job = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, method={**METHOD, "cycles": 8})
        seen: list[str] = []

        def follow() -> None:
            with breakable.client() as other:
                seen.extend(event.id for event in other.jobs.events(job.id))

        thread = threading.Thread(target=follow)
        thread.start()
        wait_until(lambda: client.jobs.get(job.id).progress is not None, 60, "progress")
        breakable.signal("api", signal.SIGKILL)
        breakable.start("api")
        thread.join(120)
        assert not thread.is_alive()
        ids: list[str] = []
        page = client.jobs.event_list(job.id, limit=100)
        ids += [event.id for event in page.data]
        while page.has_more:
            page = client.jobs.event_list(job.id, limit=100, after=page.last_id)
            ids += [event.id for event in page.data]
        assert seen == ids
