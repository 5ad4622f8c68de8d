"""The CIFAR family: the small networks of He et al. 2016, Zagoruyko & Komodakis 2016 and Izmailov et al. 2018.

Tensor names follow torchvision's habits (conv1, bn1, layer1.0.conv1, fc), so that checkpoints of the common
implementations load. ResNet's shortcuts are the paper's parameter-free option A, or 1×1 convolutions where the
checkpoint has them (`layer2.0.downsample.0.weight`).
"""

import torch.nn.functional as F
from torch import Tensor, nn


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class PadShortcut(nn.Module):
    """Option A: every second pixel, zeros for the new channels; no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        low = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, low, self.extra - low))


class BasicBlock(nn.Module):
    """The residual block of a CIFAR ResNet: two 3 × 3 convolutions, each with BatchNorm (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = (
                nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
                if projection
                else PadShortcut(inputs, outputs, stride)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(out + shortcut)


class CifarResNet(nn.Module):
    """He et al. 2016, section 4.2: depth 6n + 2, three stages of n blocks with 16, 32 and 64 channels."""

    def __init__(self, depth: int, num_classes: int = 10, channels: int = 3, projection: bool = False) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1, self.bn1 = _conv3x3(channels, 16), nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks, projection)
        self.layer2 = self._stage(16, 32, 2, blocks, projection)
        self.layer3 = self._stage(32, 64, 2, blocks, projection)
        self.fc = nn.Linear(64, num_classes)
        _initialize(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, blocks: int, projection: bool) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride, projection)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, projection) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class PreActBottleneck(nn.Module):
    """The pre-activation bottleneck: 1 × 1, 3 × 3 and 1 × 1 convolutions, each after BatchNorm and ReLU (He et al. 2016b)."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = planes * 4
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), _conv3x3(planes, planes, stride)
        self.bn3, self.conv3 = nn.BatchNorm2d(planes), nn.Conv2d(planes, outputs, 1, bias=False)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        return out + (x if self.downsample is None else self.downsample(x))  # type: ignore[no-any-return]


class CifarPreResNet(nn.Module):
    """He et al. 2016b with bottlenecks, as used by Izmailov et al. 2018: depth 9n + 2."""

    def __init__(self, depth: int, num_classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 9
        self.conv1 = _conv3x3(channels, 16)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(64, 32, 2, blocks)
        self.layer3 = self._stage(128, 64, 2, blocks)
        self.bn = nn.BatchNorm2d(256)
        self.fc = nn.Linear(256, num_classes)
        _initialize(self)

    @staticmethod
    def _stage(inputs: int, planes: int, stride: int, blocks: int) -> nn.Sequential:
        first = PreActBottleneck(inputs, planes, stride)
        return nn.Sequential(first, *(PreActBottleneck(planes * 4, planes, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.relu(self.bn(x))
        return self.fc(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class WideBlock(nn.Module):
    """The wide residual block: two 3 × 3 convolutions, each after BatchNorm and ReLU (Zagoruyko & Komodakis 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv3x3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv3x3(outputs, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))  # type: ignore[no-any-return]


class CifarWideResNet(nn.Module):
    """Zagoruyko & Komodakis 2016: WRN-d-k with d = 6n + 4 and stages of 16k, 32k and 64k channels."""

    def __init__(self, depth: int, width: int, num_classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = _conv3x3(channels, 16)
        self.layer1 = self._stage(16, 16 * width, 1, blocks)
        self.layer2 = self._stage(16 * width, 32 * width, 2, blocks)
        self.layer3 = self._stage(32 * width, 64 * width, 2, blocks)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        _initialize(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
        first = WideBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(WideBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.relu(self.bn1(x))
        return self.fc(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class CifarVGG(nn.Module):
    """VGG-16 with BatchNorm for 32 × 32 images (configuration D of Simonyan & Zisserman 2015, 512-wide classifier)."""

    LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")

    def __init__(self, num_classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in self.LAYERS:
            if isinstance(width, int):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(512, 512),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(512, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, num_classes),
        )
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]
