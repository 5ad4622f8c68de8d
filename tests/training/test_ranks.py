"""Two processes on the CPU train what one would: the same loss curve without BatchNorm, the same statistics on every rank."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.jobs import METHOD, LocalJob, Recorder, make_job, run
from wbar.errors import Diverged
from wbar.method import METHODS, HighPhase, LowPhase
from wbar.spec import JobSpec, Network
from wbar_averaging import write_safetensors
from wbar_training import state_files
from wbar_training.data.packed import Packed
from wbar_training.distributed.launch import run_on_ranks
from wbar_training.distributed.ranks import Ranks
from wbar_training.loop import TrainingJob
from wbar_training.networks.architectures import initialized, load
from wbar_training.outcome import Outcome
from wbar_training.reporter import Reporter, StopRequested
from wbar_training.setup import set_up
from wbar_training.workspace import Workspace

SLOW = METHOD.model_copy(update={"high": HighPhase(lr=0.002), "low": LowPhase(lr=0.0002), "pull": 0.1, "cycles": 1})


def without_batch_norm(folder: Path, **changes: object) -> LocalJob:
    """A SqueezeNet, without dropout, on digits at 24 pixels."""
    sizes = {"recipe_image_size": (24, 24), "recipe_batch_size": 10}
    job = make_job(folder, SLOW, images=50, recipe_dropout=0.0, **sizes, **changes)
    torch.manual_seed(5)
    network = Network("squeezenet1_1", 10)
    write_safetensors(job.start, initialized(network).state_dict(), {})
    return job.changed(network=network, threads=2)


def test_two_ranks_and_one_have_the_same_loss_curve(tmp_path: Path) -> None:
    alone, together = Recorder(), Recorder()
    one = run(without_batch_norm(tmp_path / "one"), alone)
    two = run(without_batch_norm(tmp_path / "two", recipe_devices=2, recipe_accumulate=2), together)
    assert [point.step for point in together.points] == [point.step for point in alone.points]
    for shared, single in zip(together.points, alone.points, strict=True):
        assert shared.loss == pytest.approx(single.loss, rel=1e-5)
        assert shared.accuracy == single.accuracy
        assert shared.grad_norm == pytest.approx(single.grad_norm, rel=1e-4)
        assert shared.distance_to_mean == pytest.approx(single.distance_to_mean, rel=1e-3, abs=1e-6)
    assert sorted(together.snapshots) == [1]
    assert two.result.metrics.averaged.loss == pytest.approx(one.result.metrics.averaged.loss, rel=1e-4)


def compare_statistics(spec: JobSpec, workspace: Workspace, reporter: Reporter) -> Outcome:
    """Runs on every rank: trains, and holds every tensor of w̄ beside the other rank's."""
    job = TrainingJob(spec, workspace, reporter)
    outcome = job.run()
    every = Ranks.here().gathered({name: t.clone() for name, t in job.evaluator.network.state_dict().items()})
    equal = all(torch.equal(every[0][name], other[name]) for other in every for name in every[0])
    reporter.log("info", f"equal on {len(every)} ranks: {equal}")
    return outcome


@pytest.mark.long
def test_every_rank_ends_with_the_same_statistics(tmp_path: Path) -> None:
    told = Recorder()
    job = make_job(tmp_path, METHOD.model_copy(update={"cycles": 1}), recipe_devices=2)
    outcome = run_on_ranks(
        job.spec, replace(job.workspace, threads=2), told, "tests.training.test_ranks:compare_statistics"
    )
    assert told.logs[-1] == "info: equal on 2 ranks: True"
    # What is reported is what the files give: BatchNorm's tracked statistics are not each rank's own.
    model, _ = load(job.spec.network, load_file(told.snapshots[1]))
    alone = make_job(tmp_path / "alone")
    evaluator = set_up(alone.spec, alone.workspace, lambda *_: None).evaluator
    assert evaluator.score(evaluator.predict(model)).loss == pytest.approx(outcome.result.metrics.last.loss, rel=1e-6)
    assert told.progress[-1].fraction == pytest.approx(1.0, abs=0.05)


@pytest.mark.long
def test_every_rank_finds_the_same_rate_and_makes_the_same_choice(tmp_path: Path) -> None:
    told = Recorder()
    auto = METHODS.validate_python({"type": "auto", "epochs": 4, "lr": 0.05, "control_lr": 0.05, "probe_rate": True})
    job = make_job(tmp_path, auto, images=1200, recipe_devices=2, recipe_batch_size=64)
    outcome = run_on_ranks(
        job.spec, replace(job.workspace, threads=2), told, "tests.training.test_ranks:compare_statistics"
    )
    assert told.logs[-1] == "info: equal on 2 ranks: True"
    assert outcome.result.rate_probe is not None
    assert outcome.result.selection is not None
    assert outcome.result.selection.candidates


@pytest.mark.long
def test_a_pause_goes_on_at_the_same_world_size(tmp_path: Path) -> None:
    undisturbed = run(make_job(tmp_path / "whole", recipe_devices=2), Recorder())
    job = make_job(tmp_path / "paused", recipe_devices=2)
    with pytest.raises(StopRequested, match="pause"):
        run(job, Recorder(stop_at=12))
    state = state_files.latest(job.scratch)
    assert state is not None
    again = run(job.changed(resume=state), Recorder())
    assert again.weights.read_bytes() == undisturbed.weights.read_bytes()


@pytest.mark.long
def test_what_rank_0_fails_with_is_what_the_job_fails_with(tmp_path: Path) -> None:
    hot = METHOD.model_copy(update={"high": HighPhase(lr=100.0), "low": LowPhase(lr=100.0), "pull": 50.0})
    with pytest.raises(Diverged, match="lower method"):
        run(make_job(tmp_path, hot, recipe_devices=2), Recorder())


def count_forwards(spec: JobSpec, workspace: Workspace, reporter: Reporter) -> Outcome:
    """Runs on every rank: trains, and counts the forward passes in training mode."""
    job, counted = TrainingJob(spec, workspace, reporter), [0]

    def count(module: torch.nn.Module, *_: object) -> None:
        counted[0] += module.training

    job.model.register_forward_pre_hook(count)
    outcome = job.run()
    reporter.log("info", f"forwards: {Ranks.here().gathered(counted[0])}")
    return outcome


@pytest.mark.long
def test_every_rank_makes_as_many_forwards(tmp_path: Path) -> None:
    """The last batch has 7 images, 3 and 4 on the two ranks: two parts fit one of them and not the other."""
    told = Recorder()
    method = METHOD.model_copy(update={"cycles": 1})
    job = make_job(tmp_path, method, images=50, recipe_devices=2, recipe_batch_size=43, recipe_accumulate=2)
    assert Packed.read(job.dataset).images["train"] % 43 == 7
    run_on_ranks(job.spec, replace(job.workspace, threads=2), told, "tests.training.test_ranks:count_forwards")
    counts = next(line for line in told.logs if "forwards" in line)
    assert counts == "info: forwards: [6, 6]"  # two epochs of a batch in two parts and one in a single part


def die_on_rank_1(spec: JobSpec, workspace: Workspace, reporter: Reporter) -> Outcome:
    if Ranks.here().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return TrainingJob(spec, workspace, reporter).run()


def test_a_dead_rank_ends_the_attempt(tmp_path: Path) -> None:
    job = make_job(tmp_path, recipe_devices=2)
    with pytest.raises(RuntimeError, match="rank 1 of 2 ended with -9"):
        run_on_ranks(job.spec, job.workspace, Recorder(), "tests.training.test_ranks:die_on_rank_1")
