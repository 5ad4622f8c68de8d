"""`auto` walks as the control does, at the rate that the start bears, and returns what the selection split chooses."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.training.jobs import Recorder, make_job, run
from wbar.method import METHODS

AUTO = {"type": "auto", "epochs": 2, "lr": 0.05, "control_lr": 0.05, "probe_rate": False}
UNDERFIT = {"memorised": {"ratio": 0}, "settled": {"ratio": 0}}


def test_the_last_iterate_of_auto_is_the_controls_model(tmp_path: Path) -> None:
    told = Recorder()
    auto = run(make_job(tmp_path / "auto", METHODS.validate_python(AUTO | UNDERFIT | {"control": True})), told)
    plain = {"type": "none", "epochs": 2, "lr": 0.05, "control_lr": 0.05, "final_lr": 0.0}
    control = run(make_job(tmp_path / "none", METHODS.validate_python(plain), recipe_batch_norm="track"), Recorder())
    last = load_file(told.snapshots[max(told.snapshots)])
    assert all(bool((tensor == last[name]).all()) for name, tensor in load_file(control.weights).items())
    assert auto.result.metrics.control == auto.result.metrics.last
    assert told.progress[-1].total_steps == told.progress[-1].step == 2 * 7, "no second training"
    assert any("its last iterate is the control's model" in line for line in told.logs)


@pytest.mark.parametrize("changes", [{"memorised": {"ratio": 10}}, {"control_lr": 0.1}, UNDERFIT | {"pull": 0.1}])
def test_a_walk_that_is_not_the_controls_has_a_control_of_its_own(tmp_path: Path, changes: dict[str, Any]) -> None:
    told = Recorder()
    method = METHODS.validate_python(AUTO | {"settled": {"ratio": 0}, "control": True} | changes)
    result = run(make_job(tmp_path, method), told).result
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
