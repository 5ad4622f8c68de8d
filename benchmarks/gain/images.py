"""The images of the blocks: digits and Fashion-MNIST as they are, and three harder sets made from them, all seeded.

rotated   by an angle that is uniform in ±30°
noisy     one label in ten is drawn anew, uniformly, in every split
collage   3 × 3 images of 9 × 9 pixels, with the label of the middle one

Of Fashion-MNIST the jobs' held-out images are official training images, so long as some are left over, and the unseen ones
official test images; where a job trains on all 60,000, one half of the 10,000 test images is held out and the other unseen.
"""

from dataclasses import dataclass
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from wbar_training.uploads.builtin_images import digits, fashion
from wbar_training.uploads.held_out import HELD_OUT_SEED, stratified

UNSEEN = 3000  # of Fashion-MNIST's official test images; of digits, all that no job is given
DEGREES = 30.0
NOISE = 0.1
TILE = 9


@dataclass(frozen=True)
class Images:
    """Images (N, 1, H, W) uint8 and their labels (N,) int64."""

    pixels: Tensor
    labels: Tensor

    def __getitem__(self, chosen: Tensor) -> "Images":
        return Images(self.pixels[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Splits:
    """What the jobs are given, to train and to hold out, and what only the benchmark reads."""

    train: Images
    held_out: Images
    unseen: Images


def splits(name: str, train: int, held_out: int) -> Splits:
    """Return the images of a set: `digits` or `fashion`, with or without a variation after a hyphen."""
    source, _, variation = name.partition("-")
    everything = Images(*(digits() if source == "digits" else fashion("train")))
    if train == len(everything.labels):
        assert source == "fashion"
        assert not variation, variation
        return _all_of_fashion(everything, held_out)
    share = (train + held_out) / len(everything.labels)
    kept = torch.tensor(stratified(everything.labels.tolist(), share, HELD_OUT_SEED))
    if source == "digits":
        rest = torch.ones(len(everything.labels), dtype=torch.bool)
        rest[kept] = False
        unseen = everything[rest.nonzero().squeeze(1)]
    else:
        tests = Images(*fashion("t10k"))
        unseen = tests[torch.tensor(stratified(tests.labels.tolist(), UNSEEN / len(tests.labels), HELD_OUT_SEED))]
    given = _varied(everything[kept], variation, seed=1)
    held = torch.tensor(stratified(given.labels.tolist(), held_out / len(kept), HELD_OUT_SEED))
    own = torch.ones(len(kept), dtype=torch.bool)
    own[held] = False
    return Splits(given[own.nonzero().squeeze(1)], given[held], _varied(unseen, variation, seed=2))


def _all_of_fashion(train: Images, held_out: int) -> Splits:
    tests = Images(*fashion("t10k"))
    held = torch.tensor(stratified(tests.labels.tolist(), held_out / len(tests.labels), HELD_OUT_SEED))
    rest = torch.ones(len(tests.labels), dtype=torch.bool)
    rest[held] = False
    return Splits(train, tests[held], tests[rest.nonzero().squeeze(1)])


def _varied(images: Images, variation: str, seed: int) -> Images:
    draws = torch.Generator().manual_seed(seed)
    if variation == "rotated":
        return Images(_rotated(images.pixels, draws), images.labels)
    if variation == "noisy":
        drawn = torch.rand(len(images.labels), generator=draws) < NOISE
        other = torch.randint(0, 10, images.labels.shape, generator=draws)
        return Images(images.pixels, torch.where(drawn, other, images.labels))
    if variation == "collage":
        return Images(_collages(images.pixels, draws), images.labels)
    assert not variation, variation
    return images


def _rotated(pixels: Tensor, draws: torch.Generator) -> Tensor:
    angle = (2 * torch.rand(len(pixels), generator=draws) - 1) * DEGREES * pi / 180
    zero = torch.zeros_like(angle)
    rows = [torch.stack([angle.cos(), -angle.sin(), zero], 1), torch.stack([angle.sin(), angle.cos(), zero], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels.float(), grid, align_corners=False).round().clamp(0, 255).to(torch.uint8)


def _collages(pixels: Tensor, draws: torch.Generator) -> Tensor:
    small = F.adaptive_avg_pool2d(pixels.float(), TILE).round().to(torch.uint8)
    rows = []
    for row in range(3):
        others = [small[torch.randint(len(small), (len(small),), generator=draws)] for _ in range(3)]
        rows.append(torch.cat([small if (row, at) == (1, 1) else other for at, other in enumerate(others)], dim=3))
    return torch.cat(rows, dim=2)
