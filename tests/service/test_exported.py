"""A network of no catalog, from torch.export to torch.export.load, with every part of the service a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.conftest import Service
from tests.exporting import OwnNet, exported, own_net, program_of, saved
from tests.material import write_archive, write_start
from tests.training.test_merged_programs import Otherwise
from wbar.client import Client
from wbar.errors import CheckpointsDiffer, NoWeights, UnsupportedProgram, ValidationFailed
from wbar.scores import Score
from wbar_training.data.packed import load_split
from wbar_training.uploads.dataset_archives import pack_archive
from wbar_training.uploads.limits import UploadLimits

BRIEF = {"method": {"type": "cyclic_swa", "cycles": 1, "high": {"epochs": 0.2}, "low": {"epochs": 0.2}}}
# All that a user needs: torch, and what the archive says of itself.
EVALUATE = """
import json, sys, torch
said = {"wbar.json": ""}
network = torch.export.load(sys.argv[1], extra_files=said).module()
normalize = json.loads(json.loads(said["wbar.json"])["wbar.normalize"])
mean, std = (torch.tensor(normalize[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
held_out = torch.load(sys.argv[2], weights_only=True)
logits = network((held_out["images"] - mean) / std)
print((logits.argmax(1) == held_out["labels"]).double().mean().item())
print(torch.nn.functional.cross_entropy(logits, held_out["labels"]).item())
"""


def write_exported(folder: Path) -> Path:
    (folder / "own.pt2").write_bytes(exported(own_net()))
    return folder / "own.pt2"


def held_out(folder: Path) -> Path:
    """The held-out images as pixels in [0, 1] with three channels, and their labels."""
    pack_archive(folder / "digits.zip", folder / "packed", UploadLimits())
    split = load_split(folder / "packed", "val", (8, 8), None)
    images = (split.images.float() / 255).expand(-1, 3, -1, -1).contiguous()
    torch.save({"images": images, "labels": split.labels}, folder / "held_out.pt")
    return folder / "held_out.pt"


@pytest.mark.long
def test_from_export_to_load(breakable: Service, tmp_path: Path) -> None:
    breakable.start()
    with breakable.client() as client:
        checkpoint = client.checkpoints.create(write_exported(tmp_path))
        assert checkpoint.error is None
        assert checkpoint.format == "pt2"
        assert checkpoint.parameters == sum(p.numel() for p in own_net().parameters())
        assert checkpoint.architecture is not None
        network = checkpoint.architecture
        assert (network.name, network.num_classes, network.channels, network.image_size) == ("exported", 10, 3, 8)
        dataset = client.datasets.create(write_archive(tmp_path))
        inputs = {"checkpoint": checkpoint.id, "dataset": dataset.id}
        job = client.jobs.wait(client.jobs.create(**inputs, **BRIEF).id or "", timeout=240)
        assert job.id
        assert job.result, job.error
        assert job.formats == ["pt2"]  # without being asked for
        (offered,) = job.result.formats
        assert offered.reason is None
        archive = client.jobs.download(job.id, tmp_path / "averaged.pt2", "pt2")
        weights = client.jobs.download(job.id, tmp_path / "averaged.safetensors")
        check_accuracy(job.result.metrics.averaged, archive, tmp_path)
        tensors = load_file(weights)
        own_net().load_state_dict(tensors)  # under the names of the network itself, all of them
        with safe_open(weights, framework="pt") as file:
            assert file.metadata()["wbar.architecture"] == "exported"
        check_the_result_is_a_start(client, weights, inputs)
        check_refusals(client, tmp_path, inputs)
        with breakable.http(breakable.other_key) as stranger:
            assert stranger.get(f"/v1/jobs/{job.id}/weights?format=pt2").status_code == 404
        # With the job its files go.
        client.jobs.delete(job.id)
        assert offered.sha256 not in breakable.blob_files()


def check_accuracy(score: Score, archive: Path, folder: Path) -> None:
    command = [sys.executable, "-P", "-c", EVALUATE, str(archive), str(held_out(folder))]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert float(told[0]) == pytest.approx(score.accuracy)
    assert float(told[1]) == pytest.approx(score.loss, rel=1e-4)


def check_the_result_is_a_start(client: Client, weights: Path, inputs: dict[str, str]) -> None:
    again = client.checkpoints.create(weights)
    assert again.error is None
    assert again.architecture is not None
    assert again.architecture.name == "exported"
    soup = {"type": "soup", "checkpoints": [inputs["checkpoint"], again.id]}
    job = client.jobs.wait(client.jobs.create(**inputs, method=soup).id or "", timeout=240)
    assert job.result, job.error
    assert job.result.formats[0].reason is None


def check_refusals(client: Client, folder: Path, inputs: dict[str, str]) -> None:
    (folder / "eval.pt2").write_bytes(saved(program_of(own_net().eval())))
    with pytest.raises(UnsupportedProgram, match=r"torch\.export\.export\(model\.train\(\), …\)"):
        client.checkpoints.create(folder / "eval.pt2")
    with pytest.raises(ValidationFailed, match="is not an architecture of this service"):
        client.checkpoints.create(folder / "own.pt2", architecture="exported")
    plain = client.checkpoints.create(write_start(folder))
    soup = {"type": "soup", "checkpoints": [inputs["checkpoint"], plain.id]}
    with pytest.raises(CheckpointsDiffer):
        client.jobs.create(**inputs, method=soup)


@pytest.mark.long
def test_any_network_as_an_archive(breakable: Service, tmp_path: Path) -> None:
    breakable.start()
    with breakable.client() as client:
        checkpoint = client.checkpoints.create(write_start(tmp_path))
        dataset = client.datasets.create(write_archive(tmp_path))
        inputs = {"checkpoint": checkpoint.id, "dataset": dataset.id}
        plain = client.jobs.wait(client.jobs.create(**inputs, **BRIEF).id or "", timeout=240)
        job = client.jobs.wait(client.jobs.create(**inputs, **BRIEF, formats=["pt2"]).id or "", timeout=240)
        assert job.id
        assert job.result, job.error
        check_accuracy(job.result.metrics.averaged, client.jobs.download(job.id, tmp_path / "a.pt2", "pt2"), tmp_path)
        with pytest.raises(NoWeights, match="no pt2 file: it was not asked for"):
            client.jobs.download(plain.id or "", tmp_path / "none.pt2", "pt2")


@pytest.mark.long
def test_merges_of_exported_networks(breakable: Service, tmp_path: Path) -> None:
    breakable.start("api", "ingest", "sweep")

    def sent(client: Client, network: torch.nn.Module, name: str) -> str:
        (tmp_path / f"{name}.pt2").write_bytes(exported(network))
        return client.checkpoints.create(tmp_path / f"{name}.pt2").id

    with breakable.client() as client:
        torch.manual_seed(1)
        one, two, other = (
            sent(client, OwnNet(), "one"),
            sent(client, OwnNet(), "two"),
            sent(client, Otherwise(), "other"),
        )
        merged = client.merges.wait(client.merges.create([one, two]).id)
        assert merged.status == "succeeded", merged.error
        client.merges.download(merged.id, tmp_path / "merged.safetensors")
        again = client.checkpoints.create(tmp_path / "merged.safetensors")
        assert again.error is None
        assert again.architecture is not None
        assert again.architecture.name == "exported"
        refused = client.merges.wait(client.merges.create([one, other]).id)
        assert refused.status == "failed"
        assert refused.error is not None
        assert refused.error.code == "checkpoints_differ"
        assert f"in {one}, and " in refused.error.message
        assert f"in {other}: the same tensors compute something else there" in refused.error.message
