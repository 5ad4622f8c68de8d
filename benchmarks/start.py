"""The checkpoint that the benchmarks start from: a freshly initialized ResNet-20 for grey images with ten classes."""

from pathlib import Path

import torch

from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized

NETWORK = Network("resnet20", num_classes=10, channels=1)


def write_start(path: Path) -> Path:
    torch.manual_seed(0)
    write_safetensors(path, dict(initialized(NETWORK).state_dict()), {})
    return path
