"""What a job decides: the kind of start, a rate that was too high, when to stop, and that the choice is not the report."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.work import METHOD, Recorder, make_work
from wbar.method import METHODS, HighPhase, Phase
from wbar_averaging import write_safetensors
from wbar_training import decisions
from wbar_training.loop import run
from wbar_training.networks.architectures import Network, initialized
from wbar_training.resume import Results
from wbar_training.setting import Setting

AUTO = METHODS.validate_python({"type": "auto", "lr": 0.1})


@pytest.mark.parametrize(
    ("training", "expected"),
    [(0.24, "memorised"), (0.26, "settled"), (0.59, "settled"), (0.61, "underfit")],
)
def test_the_kinds_of_start(training: float, expected: str) -> None:
    assert decisions.kind_of_start(AUTO, training, 1.0) == expected


@pytest.mark.parametrize(
    ("start", "found", "expected"), [(1.0, 0.54, True), (1.0, 0.56, False), (0.3, 0.19, True), (0.1, 0.05, False)]
)
def test_half_of_what_it_knew_beyond_chance(start: float, found: float, expected: bool) -> None:
    results = Results(start_train_accuracy=start, trough_train_accuracy=found)
    assert decisions.has_forgotten(results, chance=0.1) == expected


def test_patience_counts_snapshots_that_were_not_better() -> None:
    results = Results()
    heard = [decisions.out_of_patience(results, loss, 2) for loss in (0.5, 0.4, 0.45, 0.39, 0.39, 0.5)]
    assert heard == [False, False, False, False, False, True]
    assert results.best == 0.39


def test_the_halves_are_disjoint_and_whole(tmp_path: Path) -> None:
    work = make_work(tmp_path, METHOD.model_copy(update={"average": "greedy"}))
    setting, whole = Setting(work, lambda *_: None), Setting(make_work(tmp_path / "whole"), lambda *_: None)
    assert setting.choose is not None
    assert whole.choose is None
    report = {image.numpy().tobytes() for image in setting.val.images}
    choose = {image.numpy().tobytes() for image in setting.choose.images}
    assert len(setting.val) + len(setting.choose) == len(whole.val)
    assert abs(len(setting.val) - len(setting.choose)) <= 1
    assert report | choose == {image.numpy().tobytes() for image in whole.val.images}
    assert not report & choose


def test_early_stopping_ends_the_cycles_and_the_average_still_comes(tmp_path: Path) -> None:
    # Rates that round away: the weights stay, so no snapshot after the first lowers the loss.
    still = METHOD.model_copy(update={"cycles": 6, "high": HighPhase(lr=1e-30), "low": Phase(lr=1e-30), "pull": 0.0})
    told = Recorder()
    outcome = run(make_work(tmp_path, still, recipe_early_stopping=2), told)
    assert len(told.snapshots) == 3
    assert any("early stopping" in line for line in told.logs)
    assert len(outcome.curve) == len(told.snapshots)
    assert outcome.held_out.choose > 0


def test_the_guards_file_is_the_start_and_the_numbers_are_the_averages(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    method = METHODS.validate_python(
        {"type": "none", "epochs": 1, "lr": 3.0, "control_lr": 1.0, "final_lr": 3.0, "guard": True, "back_off": False}
    )
    work = make_work(tmp_path, method)
    outcome = run(work, Recorder())
    start = load_file(work.checkpoint)
    assert outcome.selected == "start"
    assert outcome.metrics.averaged.loss > outcome.metrics.start.loss
    assert all(bool((tensor == start[name]).all()) for name, tensor in load_file(outcome.weights).items())


def test_the_control_is_of_equal_length_whatever_stops_the_job(tmp_path: Path) -> None:
    work = make_work(tmp_path, METHOD, recipe_early_stopping=1, recipe_batch_norm="frozen")
    control = decisions.control_of(work, METHOD.model_copy(update={"control_lr": 0.1}))
    assert control.recipe["early_stopping"] is None
    assert control.recipe["batch_norm"] == "frozen"
    assert control.method["epochs"] == 4


def test_a_remainder_is_never_cut_into_single_images(tmp_path: Path) -> None:
    # 50 images in batches of 8 leave 2; four parts of them would have no variance at 1 × 1 pixels.
    network = Network("resnet18", 10)
    work = make_work(tmp_path, METHOD, images=50, recipe_batch_size=8, recipe_accumulate=4)
    torch.manual_seed(0)
    write_safetensors(work.checkpoint, initialized(network).state_dict(), {})
    assert run(replace(work, network=network), Recorder()).weights.exists()
