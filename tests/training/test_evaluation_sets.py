"""Every comparison is scored on the evaluation sets, which change nothing, unless the job selects on one of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, make_job, run
from tests.training.test_soup import soup_job
from wbar.method import METHODS, Interpolate
from wbar.results import Comparisons, EvaluatedSet
from wbar.spec import EvaluationSet, StoredDataset
from wbar_training import state_files
from wbar_training.data.augment import Preparer
from wbar_training.data.packed import Packed, load_split
from wbar_training.networks.architectures import load
from wbar_training.outcome import Outcome
from wbar_training.tasks.classification import score
from wbar_training.uploads.dataset_archives import write_packed

RATES = {"lr": 0.05, "control_lr": 0.05, "epochs": 2}
TURNED, FEW = "turned", "few"
OF_OTHER_JOBS = {"snapshots", "best_replica", "replicas"}  # of detection; of jobs with replicas


def with_sets(job: LocalJob, **changes: object) -> LocalJob:
    """The job with two evaluation sets: its held-out images turned by 90°, and all images of two classes, named backwards."""
    images, labels = (
        load_split(job.dataset, "val", (8, 8), None).images,
        load_split(job.dataset, "val", (8, 8), None).labels,
    )
    names = Packed.read(job.dataset).classes
    turned = {"val.images": images.rot90(1, (2, 3)).contiguous(), "val.labels": labels}
    turned |= {"train.images": images[:2], "train.labels": labels[:2]}
    write_packed(job.workspace.input(TURNED), turned, names, images, None, [])
    train = load_split(job.dataset, "train", (8, 8), None)
    of_two = (train.labels == 3) | (train.labels == 1)
    pixels, answers = train.images[of_two], (train.labels[of_two] == 1).long()  # 0 is the three, 1 the one
    half = len(pixels) // 2
    few = {"val.images": pixels[:half], "val.labels": answers[:half]}
    few |= {"train.images": pixels[half:], "train.labels": answers[half:]}
    write_packed(job.workspace.input(FEW), few, ["3", "1"], pixels, [0], [])  # held_out: the archive had no val/
    sets = tuple(
        EvaluationSet(name=name, dataset=StoredDataset(id=f"ds_{name}", sha256=name, blob=name))
        for name in (TURNED, FEW)
    )
    return job.changed(evaluation=sets, **changes)


def images_of(job: LocalJob, name: str) -> tuple[Tensor, Tensor]:
    """The images of an evaluation set as an independent reader has them, and the outputs that are right."""
    path = job.workspace.input(name)
    splits = ["val"] if name == TURNED else ["val", "train"]
    parts = [load_split(path, split, (8, 8), None) for split in splits]
    labels = torch.cat([part.labels for part in parts])
    return torch.cat([part.images for part in parts]), labels if name == TURNED else torch.tensor([3, 1])[labels]


def probabilities(job: LocalJob, name: str, tensors: dict[str, Tensor]) -> Tensor:
    model, _ = load(job.spec.network, tensors)
    prepare = Preparer(job.plan.mean, job.plan.std, "none", 0, torch.device("cpu"))
    with torch.no_grad():
        return model.eval()(prepare.plain(images_of(job, name)[0])).double().softmax(1)


def check(job: LocalJob, name: str, found: EvaluatedSet, comparison: str, outputs: Tensor) -> None:
    want = score(outputs, images_of(job, name)[1])
    have = found.metrics.named()[comparison]
    assert have.accuracy == pytest.approx(want.accuracy, abs=1e-9), (name, comparison)
    assert have.loss == pytest.approx(want.loss, rel=1e-5), (name, comparison)


@pytest.mark.long
def test_every_comparison_is_scored_on_every_set_and_nothing_else_changes(tmp_path: Path) -> None:
    plain = make_job(
        tmp_path / "plain", METHOD.model_copy(update={"control": True, "control_lr": 0.05, "include_start": True})
    )
    job = with_sets(make_job(tmp_path / "sets", plain.spec.method), swag=2)
    told = Recorder()
    outcome, without = run(job, told), run(plain.changed(swag=2), Recorder())
    assert outcome.weights.read_bytes() == without.weights.read_bytes()
    assert outcome.result.metrics == without.result.metrics
    assert without.result.evaluation == {}
    sets = outcome.result.evaluation
    assert list(sets) == [TURNED, FEW]
    assert [one.selected_on for one in sets.values()] == [False, False]
    snapshots = [load_file(told.snapshots[n]) for n in (1, 2)]
    for name, found in sets.items():
        assert found.images == len(images_of(job, name)[1])
        assert set(found.metrics.named()) == set(outcome.result.metrics.named())
        assert set(found.metrics.named()) == set(Comparisons.model_fields) - OF_OTHER_JOBS
        check(job, name, found, "start", probabilities(job, name, load_file(job.start)))
        check(job, name, found, "last", probabilities(job, name, snapshots[-1]))
        check(job, name, found, "averaged", probabilities(job, name, load_file(outcome.weights)))
        members = [load_file(job.start), *snapshots]
        check(job, name, found, "ensemble", torch.stack([probabilities(job, name, one) for one in members]).mean(dim=0))
        assert found.metrics.averaged.temperature is None, "there is no selection split to fit it on"
    fractions = [progress.fraction for progress in told.progress]
    assert fractions == sorted(fractions)
    # A set that is turned is harder: the numbers are of other images than the held-out ones.
    assert sets[TURNED].metrics.averaged.loss > outcome.result.metrics.averaged.loss


@pytest.mark.long
def test_the_control_that_the_walk_was_and_the_points_of_the_line_are_scored_too(tmp_path: Path) -> None:
    method = METHODS.validate_python(
        RATES | {"type": "auto", "control": True, "memorised": {"ratio": 0}, "interpolate": {"alphas": [0, 0.5]}}
    )
    job = with_sets(make_job(tmp_path, method, images=200))
    result = run(job, Recorder()).result
    line = result.interpolation
    assert line is not None
    chosen = next(point for point in line.points if point.alpha == line.chosen)
    for name, one in result.evaluation.items():
        assert one.metrics.control is not None
        assert one.metrics.averaged.temperature == result.metrics.averaged.temperature
        assert one.metrics.averaged.nll_calibrated is not None
        assert chosen.evaluation[name].loss == one.metrics.averaged.loss
        assert chosen.evaluation[name].accuracy == one.metrics.averaged.accuracy


def test_a_job_may_select_on_one_of_them(tmp_path: Path) -> None:
    # A line whose start and end are apart: the turned images draw it toward another place than the upright ones may.
    method = METHOD.model_copy(update={"interpolate": Interpolate(alphas=[0, 0.5])})
    job = with_sets(make_job(tmp_path / "on", method), select_on=TURNED)
    outcome = run(job, Recorder())
    result = outcome.result
    turned = len(images_of(job, TURNED)[1])
    whole = len(load_split(job.dataset, "val", (8, 8), None))
    assert (result.held_out.selection, result.held_out.report) == (turned, whole), "all held-out images are reported"
    assert result.evaluation[TURNED].selected_on
    assert not result.evaluation[FEW].selected_on
    line = result.interpolation
    assert line is not None
    for point in line.points:
        assert point.selection_loss == pytest.approx(point.evaluation[TURNED].loss, rel=1e-12)
    assert any("evaluation set turned" in said for said in result.selection_in_words())
    assert job.spec.run_digest() != with_sets(make_job(tmp_path / "off", method)).spec.run_digest()


def test_a_soup_is_scored_on_them(tmp_path: Path) -> None:
    job = with_sets(soup_job(tmp_path, average="greedy"))
    outcome = run(job, Recorder())
    for name, found in outcome.result.evaluation.items():
        assert set(found.metrics.named()) == set(outcome.result.metrics.named())
        check(job, name, found, "averaged", probabilities(job, name, load_file(outcome.weights)))
        check(job, name, found, "start", probabilities(job, name, load_file(job.start)))


@pytest.mark.long
def test_a_death_changes_no_score_on_them(tmp_path: Path) -> None:
    def job_at(folder: Path) -> LocalJob:
        return with_sets(make_job(folder, METHOD.model_copy(update={"include_start": True})), save_every_seconds=0.0)

    undisturbed = run(job_at(tmp_path / "whole"), Recorder())
    broken = job_at(tmp_path / "broken")
    for step in (3, 11):
        with pytest.raises(KilledHere):
            run(broken.changed(resume=state_files.latest(broken.scratch)), Recorder(die_at=step))
    again: Outcome = run(broken.changed(resume=state_files.latest(broken.scratch)), Recorder())
    assert dumped(again) == dumped(undisturbed)


def dumped(outcome: Outcome) -> Any:
    return {name: one.model_dump() for name, one in outcome.result.evaluation.items()}
