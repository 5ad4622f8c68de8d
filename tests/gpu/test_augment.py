"""Images are augmented and mixed on the device by the same draws as on the CPU, and come out the same."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from wbar.recipe import Augment, Normalization, Optimizer, Recipe
from wbar_training.data.augment import Preparer
from wbar_training.data.colour import principal_axes
from wbar_training.data.examples import Request
from wbar_training.data.feed import ImageFeed
from wbar_training.data.mixing import mix
from wbar_training.data.packed import Split

pytestmark = pytest.mark.gpu

ALL: tuple[Augment, ...] = (
    "none", "pad_crop", "pad_crop_flip", "resized_crop", "resized_crop_flip", "imagenet", "rand_augment", "trivial_augment"
)  # fmt: skip
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def images(channels: int) -> Tensor:
    draws = torch.Generator().manual_seed(6)
    return torch.randint(0, 256, (24, channels, 20, 16), dtype=torch.uint8, generator=draws)


def feed(augment: Augment, channels: int, place: str) -> ImageFeed:
    """A feed whose inputs are made on `place`, from images that lie there too, as in a job."""
    prepare = Preparer(MEAN, STD, augment, 7, torch.device(place))
    if augment == "imagenet":
        prepare.axes = principal_axes(images(channels).expand(-1, 3, -1, -1)).to(place)
    labels = torch.arange(24) % 10
    return ImageFeed(Split(images(channels).to(place), labels), prepare, None, 0)


@pytest.mark.parametrize("augment", ALL)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.usefixtures("exact")
def test_every_augmentation_is_the_cpus(device: str, augment: Augment, channels: int) -> None:
    if augment == "imagenet" and channels == 1:
        pytest.skip("the noise along the colours' axes is of three colours")
    chosen = torch.tensor([3, 20, 7, 7, 0, 11])
    for index in (0, 9):
        request = Request(chosen, "augment", index)
        there, here = feed(augment, channels, device).inputs(request), feed(augment, channels, "cpu").inputs(request)
        assert there.device.type == torch.device(device).type
        assert there.is_contiguous(memory_format=torch.channels_last)
        # Of pixels in 0 … 255 over a deviation of 51 and more.
        torch.testing.assert_close(
            there.cpu(), here, rtol=1e-4, atol=2e-3 if augment not in ("none", "pad_crop") else 1e-5
        )


@pytest.mark.parametrize("recipe", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixing_is_the_cpus(device: str, recipe: dict[str, float], dtype: torch.dtype) -> None:
    made = Recipe(
        optimizer=Optimizer(name="sgd"), batch_size=24, image_size=(20, 16), precision="float32", augment="none",
        normalize=Normalization(mean=list(MEAN), std=list(STD)), **recipe,
    )  # fmt: skip
    inputs = torch.randn(24, 3, 20, 16, generator=torch.Generator().manual_seed(8)).to(dtype)
    labels = torch.arange(24) % 10
    for step in range(6):
        here, target = mix(made, inputs, labels, 7, step)
        there, other = mix(made, inputs.to(device), labels.to(device), 7, step)
        torch.testing.assert_close(
            there.cpu(),
            here,
            rtol=1e-6 if dtype is torch.float32 else 1e-2,
            atol=1e-6 if dtype is torch.float32 else 1e-2,
        )
        assert other.share == target.share
        assert target.other is not None
        assert other.other is not None
        assert torch.equal(other.other.cpu(), target.other)


def test_draws_are_from_the_cpu_and_leave_the_devices_generator_alone(device: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3, device=device)
    torch.manual_seed(1)
    feed("imagenet", 3, device).inputs(Request(torch.arange(8), "augment", 0))
    assert torch.equal(torch.rand(3, device=device), expected)
