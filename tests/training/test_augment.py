"""Pad-crop-flip against the same thing done one image at a time; draws that depend on their index alone."""

import torch

from wbar_training.data.augment import Preparer, pad_crop
from wbar_training.draws import generator


def one_by_one(images: torch.Tensor, draws: torch.Generator, flip: bool) -> torch.Tensor:
    batch, _, height, width = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    top = torch.randint(2 * pad_y + 1, (batch, 1), generator=draws).flatten().tolist()
    left = torch.randint(2 * pad_x + 1, (batch, 1), generator=draws).flatten().tolist()
    mirrored = (torch.rand((batch, 1), generator=draws) < 0.5).flatten().tolist() if flip else [False] * batch
    out = []
    for index in range(batch):
        padded = torch.nn.functional.pad(images[index], (pad_x, pad_x, pad_y, pad_y))
        crop = padded[:, top[index] : top[index] + height, left[index] : left[index] + width]
        out.append(crop.flip(-1) if mirrored[index] else crop)
    return torch.stack(out)


def test_equals_one_image_at_a_time() -> None:
    images = torch.randint(0, 256, (9, 3, 16, 12), dtype=torch.uint8)
    for flip in (False, True):
        inputs = pad_crop(images, generator(0, "x", 1), flip)
        assert torch.equal(inputs, one_by_one(images, generator(0, "x", 1), flip))


def test_draws_depend_on_seed_purpose_and_index_alone() -> None:
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)
    prepare = Preparer((0.5,) * 3, (0.25,) * 3, "pad_crop_flip", 1, torch.device("cpu"))
    first = prepare.augmented(images, "augment", 5)
    prepare.augmented(images, "augment", 6)
    assert torch.equal(prepare.augmented(images, "augment", 5), first)
    assert not torch.equal(prepare.augmented(images, "augment", 6), first)
    assert not torch.equal(prepare.augmented(images, "batchnorm-augment", 5), first)


def test_grey_images_are_repeated_and_normalized_in_channels_last() -> None:
    images = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    inputs = Preparer((0.5, 0.5, 0.5), (0.25, 0.5, 1.0), "none", 0, torch.device("cpu")).plain(images)
    assert inputs.shape == (2, 3, 4, 4)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(inputs[0, :, 0, 0], torch.tensor([2.0, 1.0, 0.5]))
