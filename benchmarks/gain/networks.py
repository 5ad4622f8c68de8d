"""Two small networks without BatchNorm, and WRN-16-4, registered in the catalog for this benchmark alone."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wbar.catalog import ARCHITECTURES, Architecture
from wbar_training.networks.architectures import CIFAR
from wbar_training.networks.cifar import CifarWideResNet

GROUPS = 8


class SmallViT(nn.Module):
    """A vision transformer with 4 × 4 patches (Dosovitskiy et al. 2021), pre-norm, the mean of the tokens classified.

    side: of the image, in pixels; the weights belong to it.
    """

    def __init__(self, side: int, num_classes: int = 10, channels: int = 3, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, side // 4, side // 4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(dim=1))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al. 2018) with GroupNorm (Wu & He 2018) for BatchNorm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = 3 * inputs
        self.expand, self.norm1 = nn.Conv2d(inputs, hidden, 1, bias=False), nn.GroupNorm(GROUPS, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, hidden)
        self.project, self.norm3 = nn.Conv2d(hidden, outputs, 1, bias=False), nn.GroupNorm(GROUPS, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu6(self.norm1(self.expand(x)))
        out = F.relu6(self.norm2(self.depthwise(out)))
        out = self.norm3(self.project(out))
        return x + out if self.residual else out  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class MobileGroupNorm(nn.Module):
    """Five inverted residual blocks of 16, 32 and 64 channels."""

    def __init__(self, num_classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(channels, 16, 3, 2, 1, bias=False), nn.GroupNorm(GROUPS, 16)
        shapes = ((16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        self.blocks = nn.Sequential(*(InvertedResidual(*shape) for shape in shapes))
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.norm(self.stem(x))))
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


def register() -> None:
    """Make the networks known to the jobs of this process."""
    for side in (8, 27, 28):
        name = f"small_vit_{side}"
        CIFAR[name] = partial(SmallViT, side)
        ARCHITECTURES[name] = Architecture(name, "small_vit", side, 8, optimizer="adamw", peak_lr=1e-3)
    CIFAR["mobile_groupnorm"] = MobileGroupNorm
    ARCHITECTURES["mobile_groupnorm"] = Architecture("mobile_groupnorm", "mobile_groupnorm", 32, 8, peak_lr=0.1)
    CIFAR["wide_resnet16_4"] = partial(CifarWideResNet, 16, 4)
    ARCHITECTURES["wide_resnet16_4"] = Architecture("wide_resnet16_4", "cifar_wide_resnet", 32, 4)
