"""Training that diverges before its first snapshot starts again at a third of the rate, and later or too often it fails."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, make_job, run
from wbar.errors import Diverged
from wbar.method import METHODS
from wbar_averaging import Position
from wbar_training import state_files
from wbar_training.loop import TrainingJob

# A pull this strong throws the weights farther beyond the anchor with every step.
IN_A_STEP = {"lr": 0.05, "pull": 100.0, "epochs": 24}
IN_THE_SNAPSHOT = {"lr": 10.0, "pull": 1.0, "epochs": 2}


def diverging(folder: Path, recipe: dict[str, Any] | None = None, **method: object) -> LocalJob:
    plain = {"type": "none", "control_lr": 0.1, "final_lr": 0.0}
    return make_job(folder, METHODS.validate_python(plain | method), **(recipe or {}))


@pytest.mark.parametrize("method", [IN_A_STEP, IN_THE_SNAPSHOT], ids=["in a step", "in the snapshot"])
def test_it_starts_again_and_a_death_changes_nothing(tmp_path: Path, method: dict[str, float]) -> None:
    told = Recorder()
    undisturbed = run(diverging(tmp_path / "whole", **method), told)
    backed = [line for line in told.logs if "back-off" in line]
    assert undisturbed.result.back_offs == len(backed) == 2
    assert "the high rate is divided by 3 and the job starts again from the start (back-off 1 of 2)" in backed[0]
    assert "lower" not in backed[0], "what to do is for who has to do it"
    steps = [point.step for point in told.points]
    assert steps == sorted(set(steps)), "steps are counted on, and none twice"
    last = told.points[-1].step
    for die_at in (3, last - 10):  # in the first try and in the last
        broken = diverging(tmp_path / f"{die_at}", **method).changed(save_every_seconds=0.0)
        with pytest.raises(KilledHere):
            run(broken, Recorder(die_at=die_at))
        again = run(broken.changed(resume=state_files.latest(broken.scratch)), Recorder())
        assert again.weights.read_bytes() == undisturbed.weights.read_bytes()
        assert again.result.metrics == undisturbed.result.metrics
        assert again.result.back_offs == 2


# A GPU is asked for its losses at heartbeats only: the steps after one that diverged are taken.


@pytest.mark.parametrize("due", [True, False], ids=["at the next step", "at the end of an epoch"])
@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        ({"lr": 0.06, "pull": 100.0, "epochs": 12}, {"recipe_early_stopping": 20}),
        pytest.param(
            {"lr": 0.06, "pull": 100.0, "epochs": 12, "type": "ema"},
            {"recipe_early_stopping": 20},
            marks=pytest.mark.long,
        ),
        pytest.param({"lr": 0.06, "pull": 100.0, "epochs": 6}, {"recipe_precision": "float16"}, marks=pytest.mark.long),
    ],
    ids=["none", "ema", "float16"],
)
def test_when_it_is_noticed_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, float], recipe: dict[str, object], due: bool
) -> None:
    at_once, late = Recorder(), Recorder()
    expected = run(diverging(tmp_path / "at once", **method, recipe=recipe), at_once)
    assert expected.result.back_offs > 0
    step = TrainingJob._train_step

    def unread(self: TrainingJob, position: Position) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(self.meter, "check", lambda: None)
            step(self, position)

    monkeypatch.setattr(TrainingJob, "_train_step", unread)
    monkeypatch.setattr(TrainingJob, "_heartbeat_due", lambda _: due)
    found = run(diverging(tmp_path / "late", **method, recipe=recipe), late)
    assert [line for line in late.logs if "back-off" in line] == [line for line in at_once.logs if "back-off" in line]
    assert [(point.step, point.loss) for point in late.points] == [(point.step, point.loss) for point in at_once.points]
    assert found.weights.read_bytes() == expected.weights.read_bytes()
    assert found.result.metrics == expected.result.metrics


def test_without_back_offs_and_after_two_it_fails(tmp_path: Path) -> None:
    told = Recorder()
    with pytest.raises(Diverged, match="lower method"):
        run(diverging(tmp_path / "off", **IN_A_STEP, back_off=False), told)
    assert not [line for line in told.logs if "back-off" in line]
    with pytest.raises(Diverged, match=r"cycle 1, .*learning rate 2\..*lower method"):
        run(diverging(tmp_path / "thrice", lr=30.0, pull=50.0, epochs=2), told := Recorder())
    backed = [line for line in told.logs if "back-off" in line]
    assert len(backed) == 2


def test_after_the_first_snapshot_it_fails(tmp_path: Path) -> None:
    told = Recorder()
    late = METHOD.model_copy(update={"cycles": 4, "pull": 50.0, "pull_in": "late"})
    with pytest.raises(Diverged):
        run(make_job(tmp_path, late), told)
    assert told.snapshots
    assert not [line for line in told.logs if "back-off" in line]
