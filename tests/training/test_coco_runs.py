"""Masks as text are what COCO's library writes."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wbar_training.data.coco_runs import as_text, runs_down
from wbar_training.data.instance_masks import runs_of
from wbar_training.uploads.coco_masks import _of_text


def masks() -> list[NDArray[np.bool_]]:
    draws = np.random.default_rng(0)
    noise = [draws.random(tuple(draws.integers(1, 60, 2))) < share for share in (0.02, 0.3, 0.5, 0.9, 0.99)]
    disc = np.hypot(*np.ogrid[-70:71, -50:51]) < 45
    wide = np.zeros((3000, 4000), bool)
    wide[1200:1300, 5:3990] = True
    return [*noise, disc, wide, np.ones((5, 7), bool), np.zeros((5, 7), bool), np.ones((1, 1), bool)]


@pytest.mark.parametrize("number", range(10))
def test_text_is_that_of_coco(number: int) -> None:
    mask = masks()[number]
    runs = runs_down(torch.from_numpy(mask))
    assert np.array_equal(runs, runs_of(mask.T))
    text = as_text(runs)
    assert _of_text(text, "here") == runs.tolist()
    library = pytest.importorskip("pycocotools.mask", reason="not installed: pip install 'wbar[detection]'")
    assert text == library.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


def test_long_runs_and_short_ones_alternate() -> None:
    runs = np.array([0, 2**31 - 1, 1, 3, 2**31 - 1, 2**30, 2, 5], np.int32)
    assert _of_text(as_text(runs), "here") == runs.tolist()
