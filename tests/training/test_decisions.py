"""What a job decides: the kind of start, a rate that was too high, when to stop, and that the choice is not the report."""

from pathlib import Path

import pytest
import torch

from tests.training.jobs import METHOD, Recorder, make_job, run
from wbar.method import METHODS, HighPhase, LowPhase
from wbar.schedule import build_schedule
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training import decisions
from wbar_training.job_data import JobData
from wbar_training.networks.architectures import initialized
from wbar_training.resume import Results

AUTO = METHODS.validate_python({"type": "auto", "lr": 0.1})


@pytest.mark.parametrize(
    ("training", "expected"),
    [(0.24, "memorised"), (0.26, "settled"), (0.59, "settled"), (0.61, "underfit")],
)
def test_the_kinds_of_start(training: float, expected: str) -> None:
    assert decisions.kind_of_start(AUTO, training, 1.0) == expected


@pytest.mark.parametrize(
    ("start", "snapshot", "expected"), [(1.0, 0.54, True), (1.0, 0.56, False), (0.3, 0.19, True), (0.1, 0.05, False)]
)
def test_half_of_what_it_knew_beyond_chance(start: float, snapshot: float, expected: bool) -> None:
    assert decisions.has_forgotten(start, snapshot, chance=0.1) == expected


def test_patience_counts_snapshots_that_were_not_better() -> None:
    results = Results()
    answers = [decisions.out_of_patience(results, loss, 2) for loss in (0.5, 0.4, 0.45, 0.39, 0.39, 0.5)]
    assert answers == [False, False, False, False, False, True]
    assert results.best == 0.39


def test_the_halves_are_disjoint_and_whole(tmp_path: Path) -> None:
    job = make_job(tmp_path, METHOD.model_copy(update={"average": "greedy"}))
    halves, whole = (
        JobData(each.spec, each.workspace, each.plan, torch.device("cpu"))
        for each in (job, make_job(tmp_path / "whole"))
    )
    assert halves.selection is not None
    assert whole.selection is None
    report = {image.numpy().tobytes() for image in halves.report.images}
    selection = {image.numpy().tobytes() for image in halves.selection.images}
    assert len(halves.report) + len(halves.selection) == len(whole.report)
    assert abs(len(halves.report) - len(halves.selection)) <= 1
    assert report | selection == {image.numpy().tobytes() for image in whole.report.images}
    assert not report & selection


def test_early_stopping_ends_the_cycles_and_the_average_still_comes(tmp_path: Path) -> None:
    # Rates that round away: the weights stay, so no snapshot after the first lowers the loss.
    still = METHOD.model_copy(update={"cycles": 6, "high": HighPhase(lr=1e-30), "low": LowPhase(lr=1e-30), "pull": 0.0})
    told = Recorder()
    outcome = run(make_job(tmp_path, still, recipe_early_stopping=2), told)
    assert len(told.snapshots) == 3
    assert any("early stopping" in line for line in told.logs)
    assert len(outcome.result.curve) == len(told.snapshots)
    assert outcome.result.held_out.selection > 0
    assert outcome.result.finished_early


def test_the_guards_file_is_the_start_and_the_numbers_are_the_averages(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    method = METHODS.validate_python(
        {"type": "none", "epochs": 1, "lr": 3.0, "control_lr": 1.0, "final_lr": 3.0, "guard": True, "back_off": False}
    )
    job = make_job(tmp_path, method)
    outcome = run(job, Recorder())
    start = load_file(job.start)
    assert outcome.result.selection is not None
    assert outcome.result.selection.delivered == "start"
    assert outcome.result.metrics.averaged.loss > outcome.result.metrics.start.loss
    assert all(bool((tensor == start[name]).all()) for name, tensor in load_file(outcome.weights).items())
    # The average is kept beside it, as it is delivered where no guard stands.
    assert outcome.averaged is not None
    averaged, pytorch = load_file(outcome.averaged.safetensors), torch.load(outcome.averaged.pytorch)
    unguarded = run(make_job(tmp_path / "unguarded", method.model_copy(update={"guard": False})), Recorder())
    assert unguarded.averaged is None
    assert all(
        torch.equal(tensor, averaged[name]) and torch.equal(tensor, pytorch[name])
        for name, tensor in load_file(unguarded.weights).items()
    )


def test_the_control_is_of_equal_length_whatever_stops_the_job(tmp_path: Path) -> None:
    job = make_job(tmp_path, METHOD, recipe_early_stopping=1, recipe_batch_norm="frozen")
    method = METHOD.model_copy(update={"control_lr": 0.1})
    schedule = build_schedule(method, 7)
    control, _ = decisions.control_of(job.spec, job.workspace, method, schedule)
    assert control.recipe.early_stopping is None
    assert control.recipe.batch_norm == "frozen"
    assert build_schedule(control.method, 7).total_steps == schedule.total_steps


@pytest.mark.long
def test_a_remainder_is_never_cut_into_single_images(tmp_path: Path) -> None:
    # 50 images in batches of 8 leave 2; four parts of them would have no variance at 1 × 1 pixels.
    network = Network("resnet18", 10)
    job = make_job(tmp_path, METHOD, images=50, recipe_batch_size=8, recipe_accumulate=4)
    torch.manual_seed(0)
    write_safetensors(job.start, initialized(network).state_dict(), {})
    assert run(job.changed(network=network), Recorder()).weights.exists()


@pytest.mark.parametrize("method", [{"type": "none", "final_lr": 1e-30}, {"type": "ema", "final_lr": 1e-30}])
def test_methods_that_take_few_snapshots_look_once_an_epoch(tmp_path: Path, method: dict[str, object]) -> None:
    # Rates that round away: no epoch after the first lowers the loss, and two of them are waited for.
    still = METHODS.validate_python(method | {"epochs": 12, "lr": 1e-30, "control_lr": 1.0})
    told = Recorder()
    outcome = run(make_job(tmp_path, still, recipe_early_stopping=2), told)
    assert told.points[-1].step == 3 * 7
    assert told.states[-1] == (3 * 7, True), "what follows may take long, and begins from here"
    assert any("for 2 epochs" in line for line in told.logs)
    assert outcome.result.finished_early
    assert outcome.result.curve[-1].loss == outcome.result.metrics.averaged.loss
