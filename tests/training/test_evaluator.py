"""What is evaluated on training images sees them as training does."""

from pathlib import Path

import pytest
import torch

from tests.training.jobs import make_job
from wbar_training.data.feed import Request
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
