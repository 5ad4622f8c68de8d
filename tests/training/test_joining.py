"""Replicas are joined by their exact sums: the joint mean is the true one, whoever did what, and is compared with each."""

from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.averaging import reference
from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, make_job, run
from tests.training.test_loop import batch_norm_batches, probabilities
from tests.training.test_probe_images import IMAGES, outputs, with_probe
from wbar.method import METHODS, Training
from wbar.replicas import seed_of
from wbar.spec import Network
from wbar_training import exact_mean, state_files
from wbar_training.data.packed import load_split
from wbar_training.networks.architectures import initialized, load
from wbar_training.outcome import Outcome
from wbar_training.reporter import StopRequested
from wbar_training.tasks.classification import score

NETWORK = Network("resnet20", 10)
OTHERS = {
    "ema": {"type": "ema", "epochs": 2, "lr": 0.05, "final_lr": 0.005, "decay": 0.9},
    "lawa": {"type": "lawa", "epochs": 2, "lr": 0.05, "final_lr": 0.005, "window": 2},
    "none": {"type": "none", "epochs": 1, "lr": 0.05, "final_lr": 0.0},
}


def replica(folder: Path, n: int, method: Training, die_at: int | None = None) -> tuple[LocalJob, Outcome]:
    """Train replica n; die_at: the step at which its process ends, and another one goes on."""
    if n > 1:
        method = method.model_copy(update={"control": False})
    job = make_job(folder / f"{n}", method, keeps_mean=True, seed=seed_of(3, n), save_every_seconds=0.0)
    if die_at is not None:
        with pytest.raises(KilledHere):
            run(job, Recorder(die_at=die_at))
        job = job.changed(resume=state_files.latest(job.scratch))
        assert job.workspace.resume is not None
    return job, run(job, Recorder())


def joining(folder: Path, method: Training, outcomes: Sequence[Outcome], **changes: object) -> LocalJob:
    """The job that joins replicas, whose files have been fetched."""
    whole = method.model_copy(update={"replicas": len(outcomes)})
    job = make_job(folder, whole, replicas=tuple(f"job_{n}" for n in range(1, len(outcomes) + 1)), **changes)
    for n, outcome in enumerate(outcomes, start=1):
        assert outcome.exact_mean is not None
        copyfile(outcome.exact_mean, job.workspace.replica(n))
        job.workspace.replica_result(n).write_text(outcome.result.model_dump_json())
    return job


@pytest.mark.long
def test_the_joint_mean_is_that_of_all_points_with_the_statistics_of_the_twin(tmp_path: Path) -> None:
    method = METHOD.model_copy(update={"control": True, "control_lr": 0.05})
    made = [replica(tmp_path, n, method, die_at=9 if n == 2 else None) for n in (1, 2, 3)]
    job = joining(tmp_path / "joint", method, [outcome for _, outcome in made])
    told = Recorder()
    outcome = run(job, told)
    points = [load_file(one.workspace.snapshot(n)) for one, _ in made for n in (1, 2)]
    averaged = load_file(outcome.weights)
    model, _ = load(NETWORK, averaged)
    for name, _ in model.named_parameters():
        true = torch.stack([one[name].double() for one in points]).sum(dim=0) / len(points)
        assert torch.equal(averaged[name], true.float()), f"{name}: the mean is rounded once, and not by replica"
    for name, (mean, variance) in reference.batch_norm_statistics(model, batch_norm_batches(job)).items():
        torch.testing.assert_close(averaged[f"{name}.running_mean"].double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(averaged[f"{name}.running_var"].double(), variance, rtol=1e-4, atol=1e-5)
    metrics, found = outcome.result.metrics, outcome.result.replicas
    assert found is not None
    assert [(one.n, one.seed, one.points) for one in found] == [(n, seed_of(3, n), 2) for n in (1, 2, 3)]
    assert metrics.best_replica is not None
    assert metrics.replicas is not None
    assert metrics.best_replica.loss == min(one.loss for one in found)
    assert metrics.replicas.accuracy == pytest.approx(sum(one.accuracy for one in found) / 3)
    assert metrics.control == made[0][1].result.metrics.control, "the first replica's"
    assert metrics.control is not None
    alone = [
        probabilities(job, load_file(job.workspace.replica(n).with_suffix(".averaged.safetensors"))) for n in (1, 2, 3)
    ]
    labels = load_split(job.dataset, "val", (8, 8), None).labels
    assert metrics.ensemble is not None
    assert metrics.ensemble.loss == pytest.approx(score(sum(alone) / 3, labels).loss, rel=1e-6)
    assert [one.n for one in outcome.result.curve] == [1, 2, 3]
    assert outcome.result.curve[0].loss == found[0].loss
    assert outcome.result.curve[-1].loss == metrics.averaged.loss
    assert told.progress[-1].fraction > 0.8
    again = joining(tmp_path / "again", method, [outcome for _, outcome in made])
    with pytest.raises(StopRequested, match="pause"):
        run(again, Recorder(stop_at=0))
    assert run(again, Recorder()).weights.read_bytes() == outcome.weights.read_bytes()


@pytest.mark.parametrize("name", [pytest.param(one, marks=pytest.mark.long if one != "none" else ()) for one in OTHERS])
def test_means_that_are_no_sums_are_joined_as_one_point_each(tmp_path: Path, name: str) -> None:
    method = METHODS.validate_python(OTHERS[name] | {"interpolate": {"alphas": [0.5], "choose": 1.0}})
    made = [replica(tmp_path, n, method.model_copy(update={"interpolate": None})) for n in (1, 2)]
    job = joining(tmp_path / "joint", method, [outcome for _, outcome in made])
    outcome = run(job, Recorder())
    means = [exact_mean.read(job.workspace.replica(n), initialized(NETWORK)).mean(torch.float64) for n in (1, 2)]
    averaged, alone = load_file(outcome.weights), [load_file(one.weights) for _, one in made]
    for parameter, _ in load(NETWORK, averaged)[0].named_parameters():
        assert torch.equal(averaged[parameter], ((means[0][parameter] + means[1][parameter]) / 2).float())
        torch.testing.assert_close(alone[0][parameter], means[0][parameter].float(), rtol=1e-6, atol=0)
    assert outcome.result.interpolation is not None
    assert [one.alpha for one in outcome.result.interpolation.points] == [0.5, 1.0]


def test_a_point_between_the_start_and_the_joint_mean_is_delivered(tmp_path: Path) -> None:
    method = METHODS.validate_python(OTHERS["none"] | {"interpolate": {"alphas": [0], "choose": 0.5}})
    made = [replica(tmp_path, n, method.model_copy(update={"interpolate": None})) for n in (1, 2)]
    job = joining(tmp_path / "joint", method, [outcome for _, outcome in made])
    outcome = run(job, Recorder())
    line = outcome.result.interpolation
    assert line is not None
    assert (line.chosen, [point.alpha for point in line.points]) == (0.5, [0, 0.5, 1])
    means = [exact_mean.read(job.workspace.replica(n), initialized(NETWORK)).mean(torch.float64) for n in (1, 2)]
    delivered, start = load_file(outcome.weights), load_file(job.start)
    own = {name.removeprefix("module."): tensor.double() for name, tensor in start.items()}
    for name, _ in load(NETWORK, delivered)[0].named_parameters():
        expected = (own[name] + (means[0][name] + means[1][name]) / 2) / 2
        torch.testing.assert_close(delivered[name].double(), expected, rtol=1e-6, atol=1e-9)
    assert line.points[1].loss == outcome.result.metrics.averaged.loss


def test_probe_images_are_shown_to_the_joint_mean_and_its_replicas(tmp_path: Path) -> None:
    method = METHODS.validate_python(OTHERS["none"])
    made = [replica(tmp_path, n, method) for n in (1, 2)]
    job = with_probe(joining(tmp_path / "joint", method, [outcome for _, outcome in made]))
    outcome = run(job, Recorder())
    assert outcome.result.probe is not None
    assert outcome.probe is not None
    images = load_split(job.dataset, "val", (8, 8), None).images[:IMAGES]
    alone = [load_file(job.workspace.replica(n).with_suffix(".averaged.safetensors")) for n in (1, 2)]
    with np.load(outcome.probe.outputs, allow_pickle=False) as file:
        for name, true in (
            ("ensemble", sum(outputs(job, one, images) for one in alone) / 2),
            ("averaged", outputs(job, load_file(outcome.weights), images)),
        ):
            torch.testing.assert_close(torch.from_numpy(file[name]).double(), true, atol=1e-6, rtol=1e-4)


@pytest.mark.long
def test_replicas_with_other_seeds_go_other_ways(tmp_path: Path) -> None:
    seeds = [seed_of(3, n) for n in range(1, 65)]
    assert (seeds[0], len(set(seeds))) == (3, 64)
    assert all(0 <= one < 2**31 for one in seeds)
    (_, first), (_, second) = (replica(tmp_path, n, METHOD) for n in (1, 2))
    assert first.weights.read_bytes() != second.weights.read_bytes()
    alone = run(make_job(tmp_path / "alone", METHOD), Recorder())
    assert first.weights.read_bytes() == alone.weights.read_bytes(), "the first one is what the job would be by itself"
    assert alone.exact_mean is None
