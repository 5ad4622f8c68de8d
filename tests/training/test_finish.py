"""Finishing on request: training ends at the next step, and everything after it is as for a job of so many steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.averaging import reference
from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, make_job, run
from wbar.method import METHODS, Plain, Soup
from wbar.schedule import build_schedule
from wbar_averaging import Position
from wbar_training import loop, state_files

FOUR = METHOD.model_copy(update={"cycles": 4})
STRAIGHT = {"lr": 0.05, "control_lr": 0.05, "epochs": 6}
OTHERS: dict[str, dict[str, Any]] = {
    "auto": STRAIGHT | {"type": "auto", "memorised": {"ratio": 0}, "settled": {"ratio": 0}},
    "swa": STRAIGHT | {"type": "swa", "anneal_from": 0.1},
    "ema": STRAIGHT | {"type": "ema", "final_lr": 0.005},
    "lawa": STRAIGHT | {"type": "lawa", "final_lr": 0.005, "window": 2},
    "none": STRAIGHT | {"type": "none", "final_lr": 0.0},
}


@pytest.fixture(autouse=True)
def _every_step_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "HEARTBEAT_SECONDS", 0.0)


@pytest.fixture
def cycle(tmp_path: Path) -> int:
    """Steps of a cycle of the four."""
    spec = make_job(tmp_path / "probe", FOUR).spec
    assert spec.method.type == "cyclic_swa"
    return build_schedule(spec.method, 7, 0).total_steps // 4


def mean_of_snapshots(told: Recorder) -> torch.Tensor:
    points = [load_file(path) for path in told.snapshots.values()]
    return reference.mean_of(points)["conv1.weight"].float()


def test_a_cycle_that_was_begun_is_left_out(tmp_path: Path, cycle: int) -> None:
    told = Recorder(stop_at=2 * cycle + 3, reason="finish")
    outcome = run(make_job(tmp_path, FOUR), told)
    assert sorted(told.snapshots) == [1, 2]
    assert [point.n for point in outcome.result.curve] == [1, 2]
    assert outcome.result.finished_early
    assert torch.equal(load_file(outcome.weights)["conv1.weight"], mean_of_snapshots(told))
    assert max(progress.step for progress in told.progress) == 2 * cycle + 3
    assert any("finished on request, after" in line for line in told.logs)


def test_nothing_is_finished_before_there_is_something_to_average(tmp_path: Path, cycle: int) -> None:
    told = Recorder(stop_at=1, reason="finish")
    outcome = run(make_job(tmp_path, FOUR), told)
    assert sorted(told.snapshots) == [1]
    assert max(progress.step for progress in told.progress) == cycle
    assert torch.equal(load_file(outcome.weights)["conv1.weight"], load_file(told.snapshots[1])["conv1.weight"])


@pytest.mark.parametrize("name", OTHERS)
def test_every_method_averages_what_it_visited(tmp_path: Path, name: str) -> None:
    method = METHODS.validate_python(OTHERS[name])
    assert not isinstance(method, Soup)
    told = Recorder(stop_at=17, reason="finish")
    outcome = run(make_job(tmp_path, method), told)
    last = max(progress.step for progress in told.progress)
    assert 17 <= last < build_schedule(method, 7, 0).total_steps
    assert outcome.result.finished_early
    assert len(outcome.result.curve) == len(told.snapshots)
    if isinstance(method, Plain):  # its average is its last weights, those of the very step
        assert torch.equal(
            load_file(outcome.weights)["fc.weight"], load_file(told.snapshots[max(told.snapshots)])["fc.weight"]
        )


@pytest.mark.parametrize("name", [pytest.param("auto", marks=pytest.mark.long), "swa"])
def test_no_weights_are_visited_twice(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    visited: list[int] = []
    visit = loop.TrainingJob._visit

    def noted(job: loop.TrainingJob, position: Position) -> None:
        visited.append(position.step)
        visit(job, position)

    monkeypatch.setattr(loop.TrainingJob, "_visit", noted)
    method = METHODS.validate_python(OTHERS[name])
    for stop_at in (16, 17, 18, 19):
        visited.clear()
        run(make_job(tmp_path / str(stop_at), method), Recorder(stop_at=stop_at, reason="finish"))
        assert len(visited) == len(set(visited))
        assert visited[-1] == stop_at - 1  # the last weights are among them


@pytest.mark.long
def test_a_job_that_was_finished_survives_a_death_afterwards(tmp_path: Path, cycle: int) -> None:
    """The state says that it is finished: a later attempt, whom nobody asks, concludes with the same bytes."""
    undisturbed = run(make_job(tmp_path / "whole", FOUR), Recorder(stop_at=2 * cycle + 3, reason="finish"))
    job = make_job(tmp_path / "broken", FOUR)
    with pytest.raises(KilledHere):
        run(job, Recorder(stop_at=2 * cycle + 3, die_at=2 * cycle + 3, reason="finish"))
    again = run(job.changed(resume=state_files.latest(job.scratch)), Recorder())
    assert again.weights.read_bytes() == undisturbed.weights.read_bytes()
    assert again.result == undisturbed.result


def test_a_control_is_left_out_and_the_job_says_so(tmp_path: Path, cycle: int) -> None:
    method = FOUR.model_copy(update={"control": True, "control_lr": 0.05})
    for name, stop_at in (("before it", 2 * cycle + 3), ("in the middle of it", 4 * cycle + 3)):
        told = Recorder(stop_at=stop_at, reason="finish")
        outcome = run(make_job(tmp_path / name, method), told)
        assert outcome.result.metrics.control is None
        assert any("control: left out" in line for line in told.logs), name
        assert outcome.result.finished_early == (name == "before it")


def whole(job: LocalJob) -> bytes:
    return run(job, Recorder()).weights.read_bytes()


def test_what_nobody_finishes_is_what_it_was(tmp_path: Path) -> None:
    assert whole(make_job(tmp_path / "a", FOUR)) == whole(make_job(tmp_path / "b", FOUR))
