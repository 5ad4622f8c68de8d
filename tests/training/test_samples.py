"""A dataset at a glance: the counts are those of its labels, and row k of the sheet shows class k."""

from pathlib import Path

import numpy as np
import torch

from tests.material import TRAIN, VAL, write_archive
from tests.training.test_dataset_files import files, png, write_zip
from wbar_training.data.packed import load_split
from wbar_training.uploads import samples
from wbar_training.uploads.dataset_archives import pack_archive
from wbar_training.uploads.limits import UploadLimits


def test_every_class_has_a_row_of_its_own_images(tmp_path: Path) -> None:
    packed = pack_archive(write_archive(tmp_path), tmp_path / "out", UploadLimits())
    glance = samples.look(tmp_path / "out", len(packed.classes))
    assert glance.class_counts == {"train": [TRAIN] * 10, "val": [VAL] * 10}
    assert glance.sheet.size == (samples.EACH * samples.CELL, 10 * samples.CELL)
    train = load_split(tmp_path / "out", "train", (8, 8), None)
    sheet = torch.from_numpy(np.array(glance.sheet))[..., 0]
    for row in range(10):
        first = train.images[(train.labels == row).nonzero()[0, 0], 0]
        side = samples.CELL - 2 * samples.EDGE
        top = row * samples.CELL + samples.EDGE
        cell = sheet[top : top + side, samples.EDGE : samples.EDGE + side]
        assert torch.equal(cell[:: side // 8, :: side // 8], first), "enlarged, and not smoothed"


def test_images_of_many_sizes_and_a_class_with_few_are_shown(tmp_path: Path) -> None:
    content = {name: png(i, (20 + i, 70 - i)) for i, name in enumerate(files())}
    packed = pack_archive(write_zip(tmp_path / "a", content), tmp_path / "out", UploadLimits())
    assert packed.many_sizes
    glance = samples.look(tmp_path / "out", len(packed.classes))
    assert glance.class_counts == {"train": [4, 4, 4], "val": [2, 2, 2]}
    pixels = np.array(glance.sheet)
    assert (pixels[:, 4 * samples.CELL :] == samples.PAPER).all(), "four images a class, and eight places"
    assert not (pixels[:, : 4 * samples.CELL] == samples.PAPER).all()
