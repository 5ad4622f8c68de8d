"""Training images are drawn, augmented and normalized a batch at a time, on the device.

pad_crop        zero-pad by an eighth of the side, crop back at a random place (He et al. 2016); …_flip: also mirrored
resized_crop    a random box, see `wbar_training.data.crops`
imagenet        that, mirrored, then hue, saturation, brightness and PCA noise, see `wbar_training.data.colour`
rand_augment,   pad-crop-flip, then torchvision's RandAugment (Cubuk et al. 2020) or TrivialAugment (Müller & Hutter 2021),
trivial_augment drawn for each image by itself: in DataLoader workers, see `wbar_training.data.feed`
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from wbar.recipe import Augment
from wbar_training.data import colour, crops
from wbar_training.draws import generator
from wbar_training.to_device import to_device

FLIPS = ("flip", "pad_crop_flip", "resized_crop_flip", "imagenet", "rand_augment", "trivial_augment")
RESIZED = ("resized_crop", "resized_crop_flip", "imagenet")
POLICIES = ("rand_augment", "trivial_augment")


class Preparer:
    """Turns uint8 images (B, C, H, W) into normalized float32 inputs in channels_last, with the network's channels.

    mean, std: one number per channel of the network, for pixels in [0, 1].
    axes: of the PCA noise, see `colour.principal_axes`.
    """

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], augment: Augment, seed: int, device: torch.device
    ) -> None:
        self.augment, self.seed, self.device = augment, seed, device
        self.channels = len(mean)
        self.axes: Tensor | None = None
        self.normalize_by(mean, std)

    def normalize_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Use another mean and standard deviation from now on, one number per channel of the network."""
        self.mean_colour = tuple(255 * value for value in mean)
        self._mean = (torch.tensor(mean, dtype=torch.float64) * 255).float().to(self.device).view(1, -1, 1, 1)
        self._inverse = (1 / (torch.tensor(std, dtype=torch.float64) * 255)).float().to(self.device).view(1, -1, 1, 1)

    def plain(self, images: Tensor) -> Tensor:
        """Normalize held-out images, without augmentation."""
        return self._normalize(to_device(images, self.device))

    def augmented(self, images: Tensor, purpose: str, index: int) -> Tensor:
        """Augment and normalize training images, by draws that depend on (seed, purpose, index) alone.

        Images that were cropped or changed one by one already (`wbar_training.data.feed`) go to `finished`.
        """
        images = to_device(images, self.device)
        if self.augment == "none":
            return self._normalize(images)
        draws, flip = generator(self.seed, purpose, index), self.augment in FLIPS
        if self.augment in RESIZED:
            return self._coloured(crops.resized_crop(images, draws, flip), draws)
        return self._normalize(pad_crop(images, draws, flip))

    def finished(self, images: Tensor, purpose: str, index: int) -> Tensor:
        """Finish images that were cropped or changed one by one: colour, where the recipe has it, and normalization."""
        images = to_device(images, self.device)
        return self._coloured(images, generator(self.seed, f"{purpose}/colour", index))

    def _coloured(self, images: Tensor, draws: torch.Generator) -> Tensor:
        if self.augment == "imagenet":
            assert self.axes is not None
            images = colour.jitter(images.float(), draws)
            images = colour.pca_noise(images, self.axes, draws)
        return self._normalize(images)

    def _normalize(self, images: Tensor) -> Tensor:
        if images.shape[1] != self.channels:
            images = images.expand(-1, self.channels, -1, -1)
        values = (
            (images.float() if images.dtype == torch.uint8 else images.clone()).sub_(self._mean).mul_(self._inverse)
        )
        return values.contiguous(memory_format=torch.channels_last)


def pad_crop(images: Tensor, draws: torch.Generator, flip: bool) -> Tensor:
    """Zero-pad by an eighth of the side, crop back at a random place, mirror with probability ½ (He et al. 2016).

    images: (B, C, H, W) uint8. The pad is 4 pixels at 32 × 32, and at least 1.
    flip: whether images are mirrored.
    """
    batch, _, height, width = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    top = torch.randint(2 * pad_y + 1, (batch, 1), generator=draws)
    left = torch.randint(2 * pad_x + 1, (batch, 1), generator=draws)
    rows = top + torch.arange(height)
    columns = torch.arange(width).expand(batch, width)
    if flip:
        mirrored = torch.rand((batch, 1), generator=draws) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    # One transfer: on a GPU the host's time for a step is short.
    places = to_device(torch.cat([rows, left + columns], dim=1), images.device)
    rows, columns = places[:, :height], places[:, height:]
    padded = torch.nn.functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    which = torch.arange(batch, device=images.device).view(-1, 1, 1)
    # Advanced indices around a slice put the channels last: (B, H, W, C), which is channels_last once permuted.
    cropped = padded[which, :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)
