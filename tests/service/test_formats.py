"""Formats, card and signature of a job, from the request to `wbar verify`, with every part a process of its own."""

import json
from pathlib import Path

import pytest

from tests.conftest import Service
from tests.material import write_start
from tests.worker.test_signing import write_key
from wbar.errors import FilesExpired, NoWeights
from wbar.verifying import verify

BRIEF = {"method": {"type": "cyclic_swa", "cycles": 1, "high": {"epochs": 0.1}, "low": {"epochs": 0.1}}}


@pytest.mark.long
def test_onnx_card_and_signature(breakable: Service, tmp_path: Path) -> None:
    public = write_key(tmp_path / "key.pem")
    breakable.environment["WBAR_SIGNING_KEY"] = str(tmp_path / "key.pem")
    breakable.start()
    with breakable.client() as client:
        checkpoint = client.checkpoints.create(write_start(tmp_path))
        dataset = client.datasets.create(source="builtin:digits", max_train_images=96)
        inputs = {"checkpoint": checkpoint.id, "dataset": dataset.id}
        plain = client.jobs.wait(client.jobs.create(**inputs, **BRIEF).id or "", timeout=240)
        job = client.jobs.wait(client.jobs.create(**inputs, **BRIEF, formats=["onnx"]).id or "", timeout=240)
        assert plain.id
        assert job.id
        assert job.result, job.error
        (offered,) = job.result.formats
        assert offered.reason is None
        # What did not ask has none, and is told how; an unknown one is refused with what there is.
        with pytest.raises(NoWeights, match=r"no onnx file: it was not asked for .*there are: safetensors, pytorch"):
            client.jobs.download(plain.id, tmp_path / "none.onnx", "onnx")
        refused = client.request("GET", f"/v1/jobs/{job.id}/card").text
        assert refused.startswith("---\n")
        folder = tmp_path / "result"
        for name, format in (("averaged.safetensors", "safetensors"), ("averaged.pth", "pytorch")):
            client.jobs.download(job.id, folder / name, format)  # type: ignore[arg-type]
        client.jobs.download(job.id, folder / "averaged.onnx", "onnx")
        (folder / "README.md").write_bytes(client.jobs.card(job.id).encode())
        signature = client.jobs.download_signature(job.id, tmp_path / "signature.json")
        names = [one.name for one in verify([folder], signature, public)]
        assert names == ["README.md", "averaged.onnx", "averaged.pth", "averaged.safetensors"]
        assert "torch 2." in client.jobs.card(job.id)
        assert json.loads(signature.read_text())["dsseEnvelope"]
        # Of another job: the weights are the same bits, since a format changes none of them; its card is another.
        client.jobs.download(plain.id, tmp_path / "same.safetensors")
        verify([tmp_path / "same.safetensors"], signature, public)
        with breakable.http(breakable.other_key) as stranger:
            for path in ("card", "signature", "weights?format=onnx"):
                assert stranger.get(f"/v1/jobs/{job.id}/{path}").status_code == 404
        # With the job its files go.
        client.jobs.delete(job.id)
        assert offered.sha256 not in breakable.blob_files()


@pytest.mark.long
def test_expired_files_leave_the_card(breakable: Service, tmp_path: Path) -> None:
    from sqlalchemy import update

    from wbar_store.events import Events
    from wbar_store.jobs import Jobs
    from wbar_store.tables import jobs

    breakable.start()
    with breakable.client() as client:
        checkpoint = client.checkpoints.create(write_start(tmp_path))
        dataset = client.datasets.create(source="builtin:digits", max_train_images=96)
        made = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, **BRIEF, expires_after=60)
        job = client.jobs.wait(made.id or "", timeout=240).id or ""
        with pytest.raises(NoWeights, match="is not signed"):
            client.jobs.download_signature(job, tmp_path / "signature.json")
        with breakable.database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job).values(finished_at=1.0))
        Jobs(breakable.database, Events(breakable.database)).drop_files(job)
        assert "**Verdict: " in client.jobs.card(job)
        for download in (client.jobs.download, client.jobs.download_signature):
            with pytest.raises(FilesExpired):
                download(job, tmp_path / "gone")
