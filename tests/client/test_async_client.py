"""The asynchronous client against a real service, the whole way, and many requests at once."""

import asyncio
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import Service
from tests.material import start_state, write_archive, write_start
from wbar import AsyncClient
from wbar.errors import CorruptFile, NotFound

METHOD = {"cycles": 1, "high": {"lr": 0.02}, "low": {"lr": 0.002}}


@pytest.mark.long
def test_from_upload_to_weights(service: Service, tmp_path: Path) -> None:
    async def run() -> None:
        async with AsyncClient(service.url, service.key) as client:
            sent: list[tuple[int, int]] = []
            checkpoint, dataset = await asyncio.gather(
                client.checkpoints.create(write_start(tmp_path), step=lambda done, total: sent.append((done, total))),
                client.datasets.create(write_archive(tmp_path)),
            )
            assert sent[-1][0] == sent[-1][1] == checkpoint.bytes
            job = await client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, method=METHOD)
            assert job.id is not None
            types = [event.type async for event in client.jobs.events(job.id)]
            assert {"status", "snapshot", "metrics"} <= set(types)
            ended = await client.jobs.wait(job.id, timeout=60)
            assert ended.status == "succeeded"
            assert [event.type async for event in client.jobs.iterate_events(job.id)] == types
            assert {event.type async for event in client.jobs.iterate_events(job.id, ["snapshot"])} == {"snapshot"}
            await client.jobs.download(job.id, tmp_path / "averaged.safetensors")
            assert set(load_file(tmp_path / "averaged.safetensors")) == set(start_state())
            assert len(await client.jobs.snapshots(job.id)) == 1
            assert job.id in [item.id async for item in client.jobs.iterate(status="succeeded")]
            with pytest.raises(NotFound, match="job_none"):
                await client.jobs.get("job_none")
            (tmp_path / "bad").write_bytes(b"bad")
            with pytest.raises(CorruptFile):
                await client.checkpoints.create(tmp_path / "bad")

    asyncio.run(run())


def test_iterating_goes_through_all_pages_in_order(service: Service) -> None:
    with service.client() as client:
        made = [client.datasets.create("builtin:digits", wait=False).id for _ in range(3)]
        newest = client.datasets.iterate()
        assert [next(newest).id for _ in range(3)] == made[::-1]
        everything = [item.id for item in client.datasets.iterate(order="asc")]
        assert everything[-3:] == made
        pages, after = [], None
        while True:
            page = client.datasets.list(limit=2, after=after, order="asc")
            pages += [item.id for item in page.data]
            if not page.has_more:
                break
            after = page.last_id
        assert pages == everything
