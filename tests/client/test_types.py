"""A user's own mypy, strict and without our configuration, knows the types of both clients."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import asyncio
from collections.abc import AsyncIterator, Iterator

from wbar import AsyncClient, Client
from wbar.jobs import Event, Job


def blocking(path: str) -> str | None:
    with Client("http://127.0.0.1:8000", "key", retries=5) as client:
        checkpoint = client.checkpoints.create(path)
        job = client.jobs.create(checkpoint=checkpoint.id, dataset=client.datasets.create("builtin:digits").id)
        assert job.id is not None
        ended: Job = client.jobs.wait(job.id, progress=True)
        events: Iterator[Event] = client.jobs.events(job.id)
        jobs: Iterator[Job] = client.jobs.iterate(status="succeeded")
        client.jobs.download(job.id, "averaged.safetensors")
        reveal_type([key.name for key in client.keys.list().data])
        return next(jobs).name if ended.result is None else next(events).id


async def awaited(path: str) -> Job:
    async with AsyncClient() as client:
        checkpoint = await client.checkpoints.create(path, step=lambda done, total: None)
        jobs: AsyncIterator[Job] = client.jobs.iterate()
        async for job in jobs:
            if job.checkpoint == checkpoint.id and job.id is not None:
                return await client.jobs.wait(job.id)
        reveal_type(await client.jobs.list())
        return await client.jobs.get(checkpoint.no_such_field)


asyncio.run(awaited("x"))
"""


@pytest.mark.long
def test_a_script_with_both_clients_is_checked(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-P", "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    said = [line.partition(" ")[2] for line in done.stdout.splitlines()]
    assert said == [
        'note: Revealed type is "list[str]"',
        'note: Revealed type is "wbar.lists.Page[wbar.jobs.Job]"',
        'error: "Checkpoint" has no attribute "no_such_field"  [attr-defined]',
        "1 error in 1 file (checked 1 source file)",
    ], done.stdout + done.stderr
