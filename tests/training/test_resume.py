"""Whatever a job is asked for, a death after any step changes nothing, to the bit: weights, numbers and snapshots."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.jobs import COMPILED
from tests.gpu.test_resume import check_killed
from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, make_job, run
from wbar.method import METHODS
from wbar.spec import Network, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training import state_files
from wbar_training.networks.architectures import initialized

RATES = {"lr": 0.05, "control_lr": 0.05}
STRAIGHT = RATES | {"epochs": 3}

VARIANTS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "mixup": (None, {"mixup": 0.4}),
    "cutmix or mixup, in parts": (None, {"cutmix": 1.0, "mixup": 0.2, "accumulate": 3}),
    "float16 with loss scaling": (None, {"precision": "float16"}),
    "bfloat16, clipped, smoothed": (None, {"precision": "bfloat16", "grad_clip_norm": 0.5, "label_smoothing": 0.1}),
    "gradient penalty, balanced classes": (None, {"gradient_penalty": 0.1, "class_weights": "balanced"}),
    "frozen layers and statistics": (None, {"freeze": ["conv1.*", "layer1.*"], "batch_norm": "frozen"}),
    "fresh layers and head": (None, {"reset": ["layer3.*"], "head": "reset", "init": "xavier"}),
    "the classifier first, rates that fall with depth, and a control": (
        METHOD.model_dump() | {"control": True, "control_lr": 0.05, "average": "window"},
        {"head": "reset", "head_epochs": 1, "head_lr": 0.1, "layer_decay": 0.7},
    ),
    "adam": (None, {"optimizer": {"name": "adam", "weight_decay": 1e-4}}),
    "rmsprop": (None, {"optimizer": {"name": "rmsprop", "weight_decay": 1e-4}}),
    "adagrad": (None, {"optimizer": {"name": "adagrad", "weight_decay": 1e-4}}),
    "distillation": (None, {"distillation": {"teacher": "ckpt_teacher"}}),
    "early stopping": (METHOD.model_dump() | {"cycles": 4}, {"early_stopping": 1}),
    "statistics in agreement": (None, {"batch_norm": "consistent"}),
    "pull in the low phases only": (METHOD.model_dump() | {"pull_in": "low", "pull": 0.1}, {}),
    "cosine with warm-up in each high phase": (
        METHOD.model_dump() | {"high": {"lr": 0.05, "shape": "cosine", "warmup_epochs": 0.5}},
        {},
    ),
    "greedy": (METHOD.model_dump() | {"average": "greedy", "cycles": 3}, {}),
    "interpolated": (METHOD.model_dump() | {"interpolate": {"alphas": [0, 0.5]}}, {}),
    "window": (METHOD.model_dump() | {"average": "window", "cycles": 3}, {}),
    "window at a rate that is found, falling at the end": (
        METHOD.model_dump() | {"average": "window", "cycles": 2, "probe_rate": True, "anneal_last": True},
        {},
    ),
    "swa": (STRAIGHT | {"type": "swa", "anneal_epochs": 1, "anneal_from": 0.1, "snapshot_epochs": 0.5}, {}),
    "swad, from a line": (
        STRAIGHT
        | {"type": "swa", "anneal_from": 0.1, "snapshot_epochs": 0.25, "average": "swad", "interpolate": {}}
        | {"swad": {"optimum_patience": 2, "overfit_patience": 2, "tolerance": 1.0}},
        {},
    ),
    "ema, pulled": (STRAIGHT | {"type": "ema", "final_lr": 0.005, "pull": 0.5, "pull_in": "late"}, {}),
    "ema": (STRAIGHT | {"type": "ema", "final_lr": 0.005}, {}),
    "lawa": (STRAIGHT | {"type": "lawa", "final_lr": 0.005, "window": 2, "snapshot_steps": 5}, {}),
    "none, stepwise": (STRAIGHT | {"type": "none", "final_lr": 0.0, "shape": "step", "warmup_epochs": 1}, {}),
    "auto": (
        STRAIGHT | {"type": "auto", "memorised": {"ratio": 0}, "settled": {"ratio": 0}, "control": True},
        {},
    ),
    "auto from a memorised start": (
        STRAIGHT | {"type": "auto", "memorised": {"pull": 0.1, "ratio": 10}, "probe_rate": True, "select_by": "brier"},
        {},
    ),
    "the start counts": (METHOD.model_dump() | {"include_start": True}, {}),
    "early stopping by epochs, and a control": (
        STRAIGHT | {"type": "ema", "final_lr": 0.005, "epochs": 8, "control": True},
        {"early_stopping": 1},
    ),
    "control": (STRAIGHT | {"type": "swa", "anneal_from": 0.1, "epochs": 2, "control": True}, {}),
}


def job_of(folder: Path, variant: str) -> LocalJob:
    method, recipe = VARIANTS[variant]
    changes = {f"recipe_{name}": value for name, value in recipe.items()}
    job = make_job(folder, METHODS.validate_python(method) if method else METHOD, **changes)
    if "distillation" not in recipe:
        return job
    torch.manual_seed(11)
    network = Network("resnet32", 10)
    write_safetensors(job.workspace.input("teacher"), initialized(network).state_dict(), {})
    teacher = StoredWeights(id="ckpt_teacher", sha256="2" * 64, blob="teacher", prefix="", network=network)
    return job.changed(teachers=(teacher,))


# Of every kind one; the others are `make long`'s.
QUICK = {
    "cutmix or mixup, in parts", "frozen layers and statistics", "window", "swa", "ema, pulled", "auto",
    "the classifier first, rates that fall with depth, and a control",
}  # fmt: skip


@pytest.mark.parametrize(
    "variant", [pytest.param(one, marks=() if one in QUICK else pytest.mark.long) for one in VARIANTS]
)
def test_deaths_after_random_steps_change_nothing(tmp_path: Path, variant: str) -> None:
    whole = Recorder()
    undisturbed = run(job_of(tmp_path / "whole", variant), whole)
    draws = random.Random(variant)
    broken = job_of(tmp_path / "broken", variant).changed(save_every_seconds=0.0)
    last = max(step for step, _ in whole.states)
    told = Recorder()
    for step in sorted(draws.sample(range(1, last), 2)):
        with pytest.raises(KilledHere):
            run(broken.changed(resume=state_files.latest(broken.scratch)), Recorder(die_at=step))
    again = run(broken.changed(resume=state_files.latest(broken.scratch)), told)
    assert again.weights.read_bytes() == undisturbed.weights.read_bytes()
    assert again.result.metrics == undisturbed.result.metrics
    assert again.result.curve == undisturbed.result.curve
    assert again.result.selection == undisturbed.result.selection
    assert again.result.interpolation == undisturbed.result.interpolation
    for n, path in whole.snapshots.items():
        assert told.snapshots[n].read_bytes() == path.read_bytes()
    # The last attempt tells the whole history: an earlier one may have died, or lost its lease, unheard.
    assert told.curve == whole.curve
    assert series(told) == series(whole)


def series(recorder: Recorder) -> dict[int, dict[str, Any]]:
    """The training series by step, without the speed, which depends on the clock."""
    return {point.step: point.model_dump(exclude={"images_per_second"}) for point in recorder.points}


def test_a_death_in_the_control_goes_on_in_the_control(tmp_path: Path) -> None:
    undisturbed = run(job_of(tmp_path / "whole", "control"), Recorder())
    broken = job_of(tmp_path / "broken", "control").changed(save_every_seconds=0.0)
    main_steps = 14
    with pytest.raises(KilledHere):
        run(broken, DiesInControl(main_steps, 5))
    inner = state_files.latest(broken.scratch / "control")
    assert inner is not None
    assert state_files.step_of(inner) == 5
    told = Recorder()
    again = run(broken.changed(resume=state_files.latest(broken.scratch)), told)
    assert again.result.metrics == undisturbed.result.metrics
    assert min(progress.step for progress in told.progress) >= main_steps


@pytest.mark.long
def test_a_killed_job_in_compiled_steps_ends_in_the_same_bytes(tmp_path: Path) -> None:
    check_killed("resnet20" + COMPILED, "float32", "cpu", tmp_path)
    assert len([*tmp_path.glob("*/compiled*")]) == 4, "every process has compiled by itself"


class DiesInControl(Recorder):
    """Dies when the control has taken so many steps: states of the control follow the job's own last one."""

    def __init__(self, main_steps: int, steps: int) -> None:
        super().__init__()
        self._main, self._steps, self._in_control = main_steps, steps, False

    def saved(self, path: str, step: int, durable: bool) -> None:
        if self._in_control and step >= self._steps:
            raise KilledHere
        self._in_control |= step == self._main


@pytest.mark.long
def test_a_back_off_survives_a_death(tmp_path: Path) -> None:
    def ruined(folder: Path) -> LocalJob:
        # A start that knows its images, then a rate that makes it forget all of them.
        start = run(
            make_job(folder, METHODS.validate_python(STRAIGHT | {"type": "none", "final_lr": 0.0, "epochs": 12})),
            Recorder(),
        )
        method = METHODS.validate_python(METHOD.model_dump() | {"high": {"lr": 4.0}, "low": {"lr": 4.0}, "pull": 0})
        trained = start.weights.read_bytes()
        for state in folder.glob("state-*.pt"):
            state.unlink()
        job = make_job(folder, method)
        job.start.write_bytes(trained)
        return job

    told = Recorder()
    undisturbed = run(ruined(tmp_path / "whole"), told)
    backed = [line for line in told.logs if "back-off" in line]
    assert 1 <= len(backed) <= 2
    assert "the high rate is divided by 3" in backed[0]
    assert sorted(told.snapshots) == [1, 2]
    broken = ruined(tmp_path / "broken").changed(save_every_seconds=0.0)
    with pytest.raises(KilledHere):
        run(broken, Recorder(die_at=17))  # within the second try
    again = run(broken.changed(resume=state_files.latest(broken.scratch)), Recorder())
    assert again.weights.read_bytes() == undisturbed.weights.read_bytes()
    assert again.result.metrics == undisturbed.result.metrics
