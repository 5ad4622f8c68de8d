"""What is evaluated on training images sees them as training does."""

from pathlib import Path

import pytest
import torch

from tests.training.jobs import make_job
from wbar_training.data.examples import Request
from wbar_training.draws import permutation
from wbar_training.evaluate import even_slices
from wbar_training.evaluator import BATCH_NORM_IMAGES
from wbar_training.losses import class_logits
from wbar_training.setup import set_up


@pytest.mark.parametrize("augment", ["rand_augment", "trivial_augment", "resized_crop_flip", "pad_crop_flip"])
def test_the_training_score_is_of_images_augmented_as_in_training(tmp_path: Path, augment: str) -> None:
    """The gate of `auto` and back-off looked at pad-crop-flip, whatever was trained with."""
    job = make_job(tmp_path, images=200, recipe_augment=augment)
    setup = set_up(job.spec, job.workspace, lambda *_: None)
    found = setup.evaluator.train_score(setup.model)
    train, seed = setup.data.train, job.spec.seed
    drawn = permutation(len(train), seed, "batchnorm")[:BATCH_NORM_IMAGES]
    losses = []
    with torch.no_grad():
        setup.model.eval()
        for index, part in enumerate(even_slices(len(drawn), 256)):
            inputs = setup.data.feed.inputs(Request(drawn[part], "train-score", index))
            logs = class_logits(setup.model(inputs)).double().log_softmax(1)
            losses.append(-logs.gather(1, train.labels[drawn[part]][:, None]))
    assert found.loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-12)


@pytest.mark.parametrize(("batch_norm", "settles"), [("track", True), ("recompute", True), ("frozen", False)])
def test_a_back_off_looks_at_recomputed_statistics_whatever_the_recipe_makes_of_them(
    tmp_path: Path, batch_norm: str, settles: bool
) -> None:
    job = make_job(tmp_path, recipe_batch_norm=batch_norm)
    setup = set_up(job.spec, job.workspace, lambda *_: None)
    for module in setup.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.fill_(30.0)  # statistics that lag far behind
    lagging = setup.evaluator.train_score(setup.model).loss
    settled = setup.evaluator.settled_train_score(setup.model).loss
    assert (settled != pytest.approx(lagging, rel=1e-3)) == settles
