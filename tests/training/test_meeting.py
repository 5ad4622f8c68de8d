"""Replicas that meet go on from their common mean, or nearer to it: to the same bits however often they are interrupted."""

from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.training.jobs import KilledHere, LocalJob, Recorder, make_job, run
from wbar.method import CyclicSwa, HighPhase, LowPhase
from wbar.replicas import seed_of
from wbar.spec import Meetings
from wbar_training import meeting, resume, state_files
from wbar_training.loop import TrainingJob
from wbar_training.outcome import Outcome
from wbar_training.reporter import MeetingReached

METHOD = CyclicSwa(cycles=3, high=HighPhase(lr=0.05, epochs=1), low=LowPhase(lr=0.005, epochs=1), pull=0.01)
IDS = ("job_1", "job_2")


def replica(folder: Path, number: int, keep: float = 0.0, **changes: object) -> LocalJob:
    """Replica `number` of two that meet after every snapshot but the last."""
    meetings = Meetings(replicas=IDS, number=number, every=1, last=2, keep=keep)
    seed = seed_of(3, number)
    return make_job(folder / f"{number}", METHOD, images=64, keeps_mean=True, seed=seed, meetings=meetings, **changes)


def bring_together(jobs: Sequence[LocalJob], n: int) -> None:
    """Fetch snapshot n of every replica for each of them, as their workers do."""
    for job in jobs:
        for number, other in enumerate(jobs, start=1):
            copyfile(other.workspace.snapshot(n), job.workspace.met(n, number))


def go_on(job: LocalJob, recorder: Recorder | None = None) -> Outcome:
    return run(job.changed(resume=state_files.latest(job.scratch)), recorder or Recorder())


def all_of(jobs: Sequence[LocalJob]) -> list[Outcome]:
    """Train replicas in segments, one after the other."""
    for n in (1, 2):
        for job in jobs:
            with pytest.raises(MeetingReached) as reached:
                go_on(job)
            assert reached.value.n == n
        bring_together(jobs, n)
    return [go_on(job) for job in jobs]


def apart(first: dict[str, Tensor], second: dict[str, Tensor], names: Sequence[str]) -> float:
    return float(sum((first[name].double() - second[name].double()).square().sum() for name in names) ** 0.5)


@pytest.mark.parametrize("keep", [0.0, 0.75])
def test_all_weights_are_moved_to_the_mean_of_the_snapshots_or_nearer_to_it(tmp_path: Path, keep: float) -> None:
    jobs = [replica(tmp_path, number, keep) for number in (1, 2)]
    for job in jobs:
        with pytest.raises(MeetingReached):
            go_on(job)
    bring_together(jobs, 1)
    came = [load_file(job.workspace.snapshot(1)) for job in jobs]
    assert any(not torch.equal(came[0][name], came[1][name]) for name in came[0])
    told = []
    for number, job in enumerate(jobs):
        path = state_files.latest(job.scratch)
        state = resume.load(path, job.spec.run_digest()) if path else None
        training = TrainingJob(job.spec, job.changed(resume=path).workspace, Recorder())
        training._meet()
        assert state is not None
        for name, tensor in training.model.state_dict().items():
            if not tensor.is_floating_point():
                assert torch.equal(tensor, state.model[name])
                continue
            mean = (came[0][name].double() + came[1][name].double()) / 2
            wanted = keep * came[number][name].double() + (1 - keep) * mean
            torch.testing.assert_close(tensor.double(), wanted, rtol=1e-7, atol=1e-9)
            if not keep:
                assert torch.equal(tensor, mean.float()), f"{name}: rounded once"
        kept, before = training.stepper.state_dict()["optimizer"]["state"], state.stepper["optimizer"]["state"]
        for one, values in before.items():
            assert torch.equal(kept[one]["momentum_buffer"], values["momentum_buffer"]), "its momentum is its own"
        names = [name for name, _ in training.model.named_parameters()]
        told.append(training.results.meetings)
        assert told[-1][0].n == 1
        assert told[-1][0].spread == pytest.approx(apart(came[0], came[1], names) / 2, rel=1e-9)
    assert told[0] == told[1], "both have measured the same"


@pytest.mark.long
def test_the_bits_are_the_same_however_often_it_is_interrupted(tmp_path: Path) -> None:
    jobs = [replica(tmp_path / "plain", number, 0.5) for number in (1, 2)]
    true = [outcome.weights.read_bytes() for outcome in all_of(jobs)]
    assert true[0] != true[1]

    # What met before, all at hand: nothing is waited for.
    through = [replica(tmp_path / "through", number, 0.5) for number in (1, 2)]
    for job in through:
        for n in (1, 2):
            for number, other in enumerate(jobs, start=1):
                copyfile(other.workspace.snapshot(n), job.workspace.met(n, number))
    outcomes = [run(job, Recorder()) for job in through]
    assert [one.weights.read_bytes() for one in outcomes] == true
    found = outcomes[0].result.meetings
    assert found is not None
    assert [one.n for one in found] == [1, 2]
    assert all(0 < one.spread < one.norm for one in found)

    # Killed within each segment, at its end, and just after a meeting.
    again = replica(tmp_path / "again", 1, 0.5, save_every_seconds=0.0)
    for n in (1, 2):
        for number, other in enumerate(jobs, start=1):
            copyfile(other.workspace.snapshot(n), again.workspace.met(n, number))
    for step in (3, 8, 9, 12, 16, 17, 22):
        with pytest.raises(KilledHere):
            go_on(again, Recorder(die_at=step))
    assert go_on(again).weights.read_bytes() == true[0]


def test_a_killed_making_of_the_mean_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [replica(tmp_path, number) for number in (1, 2)]
    for job in jobs:
        with pytest.raises(MeetingReached):
            go_on(job)
    bring_together(jobs, 1)
    calls = []

    class Dies(Recorder):
        def heartbeat(self, progress: object) -> None:
            calls.append(progress)
            if len(calls) > 3:
                raise KilledHere

    with pytest.raises(KilledHere):
        go_on(jobs[0], Dies())
    state = state_files.latest(jobs[0].scratch)
    assert state is not None
    assert state_files.step_of(state) == 8, "as it came to the meeting"
    with pytest.raises(MeetingReached) as reached:
        go_on(jobs[0])
    assert reached.value.n == 2


def test_snapshots_that_meet_are_kept_as_they_were_trained(tmp_path: Path) -> None:
    job = replica(tmp_path, 1)
    start = {name: one.half() if one.is_floating_point() else one for name, one in load_file(job.start).items()}
    save_file(start, job.start)
    with pytest.raises(MeetingReached):
        run(job, Recorder())
    kept = load_file(job.workspace.snapshot(1))
    assert {one.dtype for one in kept.values() if one.is_floating_point()} == {torch.float32}
    path = state_files.latest(job.scratch)
    assert path is not None
    trained = resume.load(path, job.spec.run_digest()).model
    assert all(torch.equal(kept[name], trained[name]) for name in kept), "nothing was rounded"


def test_they_meet_after_some_snapshots_and_not_at_the_end() -> None:
    meetings = Meetings(replicas=IDS, number=1, every=2, last=4)
    assert [n for n in range(8) if meetings.after(n)] == [2, 4]
    taken = resume.Results(snapshots=[{}, {}], snapshot_steps=[8, 16])
    assert meeting.due(meetings, taken, 16) == 2
    assert meeting.due(meetings, taken, 17) is None
    assert meeting.due(None, taken, 16) is None
