"""A start is judged by training images as it knows them: an augmentation that it was never trained with tells nothing of it."""

import shutil
from pathlib import Path

import pytest

from tests.training.jobs import Recorder, make_job, run
from wbar.method import METHODS
from wbar_training.familiarity import StartLosses

AUTO = {"type": "auto", "epochs": 1, "lr": 0.05, "control_lr": 0.05, "probe_rate": False}


@pytest.mark.parametrize(
    ("losses", "unfamiliar", "judged"),
    [
        (StartLosses(augmented=1.7, plain=0.001, held_out=0.9), True, 0.001),  # Fashion-MNIST, memorised, now mirrored
        (StartLosses(augmented=2.6, plain=0.08, held_out=0.11), True, 0.08),  # digits, now mirrored
        (StartLosses(augmented=0.115, plain=None, held_out=0.088), False, 0.115),  # shifted digits, known
        (
            StartLosses(augmented=3.0, plain=2.9, held_out=0.5),
            False,
            3.0,
        ),  # hard as they are: not the augmentation's doing
    ],
)
def test_the_augmentation_is_unfamiliar_where_it_alone_is_hard(
    losses: StartLosses, unfamiliar: bool, judged: float
) -> None:
    assert (losses.unfamiliar, losses.training) == (unfamiliar, judged)
    assert (losses.warning("pad_crop_flip") is not None) == unfamiliar


def test_the_warning_names_milder_augmentations() -> None:
    losses = StartLosses(augmented=3.2, plain=0.05, held_out=0.2)
    said = losses.warning("pad_crop_flip")
    assert said is not None
    assert (
        "3.2000 on augmented training images, 0.0500 on the same ones as they are and 0.2000 on held-out ones" in said
    )
    assert "which mirrors images" in said
    assert "set recipe.augment to 'pad_crop' or 'none'" in said
    assert "set recipe.augment to 'none'" in (losses.warning("pad_crop") or "")
    assert "set recipe.augment to 'resized_crop' or 'none'" in (losses.warning("imagenet") or "")


@pytest.mark.long
def test_a_start_that_never_saw_mirrored_digits_is_judged_by_them_as_they_are(tmp_path: Path) -> None:
    taught = METHODS.validate_python(
        {"type": "none", "epochs": 12, "lr": 0.1, "control_lr": 0.1, "final_lr": 0.0, "back_off": False}
    )
    start = run(make_job(tmp_path / "start", taught, recipe_augment="none", recipe_batch_norm="track"), Recorder())
    logs = {}
    for augment in ("none", "pad_crop_flip"):
        job, told = make_job(tmp_path / augment, METHODS.validate_python(AUTO), recipe_augment=augment), Recorder()
        shutil.copyfile(start.weights, job.start)
        result = run(job, told).result
        assert result.start_kind == "memorised"
        logs[augment] = [line for line in told.logs if "probably not trained with" in line]
    assert (len(logs["none"]), len(logs["pad_crop_flip"])) == (0, 1)
