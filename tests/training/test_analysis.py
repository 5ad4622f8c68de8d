"""What is measured at the end: the same after an interruption, and never a change of the weights."""

from pathlib import Path

import pytest
import torch

from tests.training.jobs import METHOD, Recorder, make_job, run
from wbar.loss_surface import SurfaceOptions
from wbar_averaging import distances
from wbar_training.analysis import attempted
from wbar_training.networks.tensors import read_tensors
from wbar_training.reporter import StopRequested
from wbar_training.state_files import latest


@pytest.mark.long
def test_flatness_and_swag_describe_the_job_and_leave_its_weights_alone(tmp_path: Path) -> None:
    plain = run(make_job(tmp_path / "plain"), Recorder())
    job = make_job(tmp_path / "measured", flatness=True, swag=2)
    outcome = run(job, Recorder())
    assert outcome.weights.read_bytes() == plain.weights.read_bytes()
    assert plain.result.flatness is None
    assert plain.result.metrics.swag is None
    assert outcome.result.metrics.swag is not None
    assert outcome.result.metrics.swag.loss != outcome.result.metrics.averaged.loss
    flatness = outcome.result.flatness
    assert flatness is not None
    start, averaged = read_tensors(job.start), read_tensors(outcome.weights)
    assert flatness.distance == pytest.approx(distances(start, averaged).total, rel=1e-6)
    assert [epoch.epoch for epoch in flatness.epochs] == [1, 2, 3, 4]
    assert all(epoch.distance > 0 and epoch.distance_from_start > 0 and epoch.update_norms for epoch in flatness.epochs)
    assert all(one.update_histogram and sum(one.update_histogram.counts) == 7 for one in flatness.epochs)
    assert set(flatness.sharpness_half) == set(flatness.sharpness)
    assert all(0 <= flatness.sharpness_half[name] <= percent for name, percent in flatness.sharpness.items())
    assert set(flatness.sharpness) == set(flatness.top_eigenvalue) == {"start", "last", "averaged"}
    between = flatness.interpolation
    at_end = between.alphas.index(1.0)
    assert between.val_loss[at_end] == pytest.approx(outcome.result.metrics.averaged.loss, rel=1e-3)
    middle = flatness.line.positions.index(0.0)
    assert flatness.line.loss["averaged"][middle] == pytest.approx(between.train_loss[at_end], rel=1e-6)
    assert flatness.plane is not None
    assert {point.name for point in flatness.plane.points} == {"start", "last", "averaged"}


@pytest.mark.long
def test_an_interrupted_job_measures_the_same(tmp_path: Path) -> None:
    asked = {"flatness": True, "swag": 2, "surface": SurfaceOptions(points=3, around=["averaged"])}
    whole = run(make_job(tmp_path / "whole", **asked), Recorder())
    scratch = tmp_path / "cut"
    with pytest.raises(StopRequested):
        run(make_job(scratch, **asked), Recorder(stop_at=9))
    again = run(make_job(scratch, **asked, resume=latest(scratch)), Recorder())
    assert again.result.flatness == whole.result.flatness
    assert again.result.metrics == whole.result.metrics


@pytest.mark.long
def test_one_cycle_has_no_plane(tmp_path: Path) -> None:
    outcome = run(make_job(tmp_path, METHOD.model_copy(update={"cycles": 1}), flatness=True), Recorder())
    assert outcome.result.flatness is not None
    # w̄ is the only snapshot with other BatchNorm statistics: no third point.
    assert outcome.result.flatness.plane is None
    assert torch.isfinite(torch.tensor(outcome.result.flatness.interpolation.train_loss)).all()


def test_an_operation_without_a_second_derivative_ends_the_measurement_and_not_the_job() -> None:
    def twice() -> torch.Tensor:
        x = torch.zeros(3, requires_grad=True)
        (gradient,) = torch.autograd.grad(torch.nn.functional.hardsigmoid(x).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.sum(), x)[0]

    def broken() -> None:
        raise RuntimeError("a bug")

    told = Recorder()
    assert attempted(told, "the flatness", twice) is None
    assert "the flatness could not be measured: derivative for aten::hardsigmoid_backward" in told.logs[0]
    with pytest.raises(RuntimeError, match="a bug"):
        attempted(told, "the flatness", broken)
