"""What the start was trained with is found from its outputs: the normalization, and the order of the classes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.jobs import METHOD, LocalJob, Recorder, make_job, run
from wbar.method import METHODS
from wbar.recipe import IMAGENET
from wbar_training.networks.tensors import read_tensors

TRAINING = METHODS.validate_python({"type": "none", "epochs": 6, "lr": 0.05, "control_lr": 0.05, "final_lr": 0.0})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A start that was trained with ImageNet's statistics."""
    job = make_job(tmp_path_factory.mktemp("trained"), TRAINING, images=300, recipe_normalize=IMAGENET)
    return run(job, Recorder()).weights.read_bytes()


def from_trained(folder: Path, trained: bytes, **changes: object) -> LocalJob:
    job = make_job(folder, METHOD.model_copy(update={"cycles": 1}), images=300, **changes)
    job.start.write_bytes(trained)
    return job


def test_imagenets_statistics_are_found_and_used(tmp_path: Path, trained: bytes) -> None:
    told = Recorder()
    job = from_trained(tmp_path / "auto", trained, find_normalization=True)
    outcome = run(job, told)
    probe = outcome.result.normalization
    assert probe is not None
    assert probe.chosen == "imagenet"
    assert set(probe.losses) == {"dataset", "imagenet", "half", "none"}
    assert min(probe.losses, key=lambda name: probe.losses[name]) == "imagenet"
    assert any("normalize auto" in line and "imagenet" in line for line in told.logs)
    assert told.progress[0].normalize is None
    assert told.progress[-1].normalize == probe.normalization
    given = run(from_trained(tmp_path / "given", trained, recipe_normalize=IMAGENET), Recorder())
    assert outcome.result.metrics == given.result.metrics
    actual, expected = load_file(outcome.weights), load_file(given.weights)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_the_datasets_own_statistics_win_ties(tmp_path: Path) -> None:
    job = make_job(tmp_path / "fresh", METHOD.model_copy(update={"cycles": 1}), find_normalization=True)
    for tensor in (tensors := read_tensors(job.start)).values():
        if tensor.is_floating_point():
            tensor.zero_()  # a network whose outputs do not depend on its inputs
    from wbar_averaging import write_safetensors

    write_safetensors(job.start, tensors, {})
    probe = run(job, Recorder()).result.normalization
    assert probe is not None
    assert probe.chosen == "dataset"
    assert probe.normalization == job.spec.recipe.normalize


def test_another_order_of_the_classes_is_proposed(tmp_path: Path, trained: bytes) -> None:
    told = Recorder()
    wrong = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "0")
    run(from_trained(tmp_path, trained, recipe_normalize=IMAGENET, classes=wrong), told)
    warnings = [line for line in told.logs if "near chance" in line]
    assert len(warnings) == 1
    assert "give `classes` as ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']" in warnings[0]
