"""`auto` walks as the control does, at the rate that the start bears, and returns what the selection split chooses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.training.jobs import Recorder, make_job, run
from wbar.method import METHODS, SelectBy
from wbar.spec import Network
from wbar_training.evaluate import Outputs
from wbar_training.loop import TrainingJob
from wbar_training.selection_evaluator import SelectionEvaluator
from wbar_training.tasks.classification import Classification
from wbar_training.tasks.multilabel import Multilabel

AUTO = {"type": "auto", "epochs": 2, "lr": 0.05, "control_lr": 0.05, "probe_rate": False}
UNDERFIT = {"memorised": {"ratio": 0}, "settled": {"ratio": 0}}


def test_the_last_iterate_of_auto_is_the_controls_model(tmp_path: Path) -> None:
    told = Recorder()
    auto = run(make_job(tmp_path / "auto", METHODS.validate_python(AUTO | UNDERFIT | {"control": True})), told)
    plain = {"type": "none", "epochs": 2, "lr": 0.05, "control_lr": 0.05, "final_lr": 0.0}
    control = run(make_job(tmp_path / "none", METHODS.validate_python(plain), recipe_batch_norm="track"), Recorder())
    last = load_file(told.snapshots[max(told.snapshots)])
    assert auto.control is not None
    for file in (control.weights, auto.control):
        assert all(bool((tensor == last[name]).all()) for name, tensor in load_file(file).items())
    assert auto.result.metrics.control == auto.result.metrics.last
    assert told.progress[-1].total_steps == told.progress[-1].step == 2 * 7, "no second training"
    assert any("its last iterate is the control's model" in line for line in told.logs)


@pytest.mark.parametrize("changes", [{"memorised": {"ratio": 10}}, {"control_lr": 0.1}, UNDERFIT | {"pull": 0.1}])
def test_a_walk_that_is_not_the_controls_has_a_control_of_its_own(tmp_path: Path, changes: dict[str, Any]) -> None:
    told = Recorder()
    method = METHODS.validate_python(AUTO | {"settled": {"ratio": 0}, "control": True} | changes)
    outcome = run(make_job(tmp_path, method), told)
    result, last = outcome.result, load_file(told.snapshots[max(told.snapshots)])
    assert outcome.control is not None
    assert any(bool((tensor != last[name]).any()) for name, tensor in load_file(outcome.control).items())
    assert result.metrics.control is not None
    assert result.metrics.control != result.metrics.last
    assert told.progress[-1].step == told.progress[-1].total_steps == 2 * 2 * 7


def test_auto_finds_the_rate_that_the_start_bears_and_walks_from_the_start(tmp_path: Path) -> None:
    told, plain = Recorder(), Recorder()
    probed = run(make_job(tmp_path / "probed", METHODS.validate_python(AUTO | UNDERFIT | {"probe_rate": True})), told)
    probe = probed.result.rate_probe
    assert probe is not None
    assert [one.factor for one in probe.tried] == [2.0, 3.0][: len(probe.tried)]
    held = [one.factor for one in probe.tried if one.loss is not None and one.loss <= 1.05 * probe.held_out_loss]
    assert probe.factor == max(held, default=1.0)
    assert told.points[0].lr == pytest.approx(probe.lr)
    # The trials leave nothing behind: the walk at that rate is the same without them.
    same = AUTO | UNDERFIT | {"lr": probe.lr}
    alone = run(make_job(tmp_path / "alone", METHODS.validate_python(same)), plain)
    assert [one.loss for one in told.points] == [one.loss for one in plain.points]
    assert probed.result.metrics.last == alone.result.metrics.last


@pytest.mark.long
@pytest.mark.parametrize("epochs", [3, 8])
def test_the_choice_costs_at_most_15_percent_of_the_training(tmp_path: Path, epochs: int) -> None:
    method = METHODS.validate_python(AUTO | {"epochs": epochs, "memorised": {"ratio": 0}})
    local = make_job(tmp_path, method, images=1200)
    job = TrainingJob(local.spec, local.workspace, Recorder())
    outcome = job.run()
    assert outcome.result.selection is not None
    assert outcome.result.selection.candidates, "it was made"
    before = job.estimate.done
    job.course.average.finish(SelectionEvaluator(job.setup, Recorder(), job.course.limits))
    cost = job.estimate.done - before
    assert 0 < cost <= job.course.average.selection_forwards(job.course.limits)
    assert cost <= 0.15 * 3 * len(job.setup.data.train) * epochs


@pytest.mark.long
@pytest.mark.parametrize("ruined", [False, True])
def test_the_temperature_travels_beside_the_weights(tmp_path: Path, ruined: bool) -> None:
    method = METHODS.validate_python(AUTO | {"memorised": {"ratio": 0}})
    local = make_job(tmp_path, method, images=1200, recipe_label_smoothing=0.9 if ruined else 0.0)
    if ruined:  # a start that is good, and a loss that teaches it to doubt: the guard delivers the start
        shutil.copyfile(run(make_job(tmp_path / "start", method, images=1200), Recorder()).weights, local.start)
    told = Recorder()
    outcome = run(local, told)
    result = outcome.result
    assert result.selection is not None
    assert result.selection.delivered == ("start" if ruined else "averaged")
    of_file = result.metrics.start if ruined else result.metrics.averaged
    with safe_open(outcome.weights, "pt") as file:
        assert json.loads(file.metadata()["wbar.temperature"]) == of_file.temperature
    with safe_open(told.snapshots[8], "pt") as file:
        assert json.loads(file.metadata()["wbar.temperature"]) == result.metrics.last.temperature
    for name, score in result.metrics.named().items():
        assert score.temperature is not None, name
        assert score.nll_calibrated is not None, name
    assert result.selection.optimism is not None


@pytest.mark.long
def test_the_guard_stands_where_the_choice_is_assumed(tmp_path: Path) -> None:
    method = METHODS.validate_python(AUTO | {"memorised": {"ratio": 0}})
    local = make_job(tmp_path, method, images=400, recipe_label_smoothing=0.9)
    shutil.copyfile(run(make_job(tmp_path / "start", method, images=1200), Recorder()).weights, local.start)
    result = run(local, Recorder()).result
    assert result.selection is not None
    assert result.selection.assumed
    assert result.selection.delivered == "start"
    assert result.verdict == "worse"


def test_a_rate_is_not_looked_for_with_fresh_layers(tmp_path: Path) -> None:
    method = METHODS.validate_python(AUTO | {"probe_rate": True})
    told = Recorder()
    result = run(make_job(tmp_path, method, recipe_head="reset"), told).result
    assert result.rate_probe is None
    assert told.points[0].lr == 0.05


@pytest.mark.parametrize("by", ["loss", "accuracy", "brier"])
def test_a_candidate_is_compared_by_what_was_asked_for(by: SelectBy) -> None:
    outputs = Outputs(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]), torch.tensor([1.0, 2.0]).double())
    labels = torch.tensor([0, 1])
    expected = {"loss": [1.0, 2.0], "accuracy": [0.0, 1.0], "brier": [0.375, 0.01 + 0.64 + 0.49]}[by]
    network, names = Network("resnet20", 3), ["a", "b", "c"]
    assert Classification(network, names).per_image(outputs, labels, by).tolist() == pytest.approx(expected)
    several = torch.tensor([[1, 0, 0], [0, 1, 1]])
    expected = {"loss": [1.0, 2.0], "accuracy": [1 / 3, 1 / 3], "brier": [0.125, (0.01 + 0.64 + 0.09) / 3]}[by]
    assert Multilabel(network, names).per_image(outputs, several, by).tolist() == pytest.approx(expected)
