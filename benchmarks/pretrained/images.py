"""The images of a task, and their unseen ones under four shifts; everything follows from the set, its size and the seed.

    rotated      by 15°
    contrast     the distance of each pixel to its image's mean, halved
    noise        Gaussian, σ = 0.1 of the range
    pixelated    at half of the resolution that the set has, each pixel a square

Images are enlarged to the size that the network sees before they are shifted. The seed draws which images are trained on
and held out; of the digits, which are few, also which are unseen.
"""

from dataclasses import dataclass
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from wbar_training.uploads.builtin_images import digits, fashion
from wbar_training.uploads.held_out import stratified

DEGREES = 15.0
SIGMA = 0.1


@dataclass(frozen=True)
class Images:
    """Images (N, 1, H, W) uint8 and their labels (N,) int64."""

    pixels: Tensor
    labels: Tensor

    def __getitem__(self, chosen: Tensor) -> "Images":
        return Images(self.pixels[chosen], self.labels[chosen])

    def enlarged(self, size: int) -> "Images":
        """Return them at `size` pixels a side."""
        pixels: Tensor = transforms.resize(self.pixels, [size, size], antialias=True)
        return Images(pixels, self.labels)


@dataclass(frozen=True)
class Task:
    """The images of one task, at the network's size.

    train, held_out: what the jobs are given. unseen: what they are scored on; shifted: the same, by shift.
    """

    train: Images
    held_out: Images
    unseen: Images
    shifted: dict[str, Images]


@dataclass(frozen=True)
class Counts:
    """How many images of each kind; of the digits, all that are left over are unseen, at most."""

    train: int = 1000
    held_out: int = 400
    unseen: int = 1000


def task_of(name: str, size: int, counts: Counts, seed: int) -> Task:
    """Return the images of `fashion` or `digits`."""
    if name == "fashion":
        pool, tests = Images(*fashion("train")), Images(*fashion("t10k"))
        unseen = _drawn(tests, min(counts.unseen, len(tests.labels)), 0)[0]
    else:
        unseen, pool = _drawn(Images(*digits()), counts.unseen, 1000 + seed, counts.train + counts.held_out)
    held_out, rest = _drawn(pool, counts.held_out, 2000 + seed)
    train = _drawn(rest, min(counts.train, len(rest.labels)), 3000 + seed)[0]
    native = unseen.pixels.shape[-1]
    large = unseen.enlarged(size)
    shifted = {
        "rotated": Images(rotated(large.pixels, DEGREES), unseen.labels),
        "contrast": Images(lower_contrast(large.pixels), unseen.labels),
        "noise": Images(noisy(large.pixels, SIGMA, seed), unseen.labels),
        "pixelated": Images(pixelated(unseen.pixels, native // 2, size), unseen.labels),
    }
    return Task(train.enlarged(size), held_out.enlarged(size), large, shifted)


SHIFTS = ("rotated", "contrast", "noise", "pixelated")


def _drawn(images: Images, count: int, seed: int, leave: int = 0) -> tuple[Images, Images]:
    """Return about `count` images, every class its share, and the others; at least `leave` others."""
    total = len(images.labels)
    share = min(count, total - leave) / total
    chosen = torch.tensor(stratified(images.labels.tolist(), share, seed))
    others = torch.ones(total, dtype=torch.bool)
    others[chosen] = False
    return images[chosen], images[others.nonzero().squeeze(1)]


def rotated(pixels: Tensor, degrees: float) -> Tensor:
    """Turn images around their centres; what comes from outside is black."""
    angle = torch.tensor(degrees * pi / 180)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    theta = torch.cat([turn, torch.zeros(2, 1)], dim=1).expand(len(pixels), 2, 3)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return _bytes(F.grid_sample(pixels.float(), grid, align_corners=False))


def lower_contrast(pixels: Tensor) -> Tensor:
    """Halve the distance of each pixel to the mean of its image."""
    values = pixels.float()
    mean = values.mean(dim=(1, 2, 3), keepdim=True)
    return _bytes(mean + (values - mean) / 2)


def noisy(pixels: Tensor, sigma: float, seed: int) -> Tensor:
    """Add Gaussian noise. sigma: in parts of the range."""
    draws = torch.Generator().manual_seed(seed)
    return _bytes(pixels.float() + 255 * sigma * torch.randn(pixels.shape, generator=draws))


def pixelated(pixels: Tensor, side: int, size: int) -> Tensor:
    """Reduce images to side × side means, and show each as a square, `size` pixels a side in all."""
    small = F.adaptive_avg_pool2d(pixels.float(), side)
    return _bytes(F.interpolate(small, (size, size), mode="nearest"))


def _bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
