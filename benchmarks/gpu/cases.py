"""The networks whose training is timed, the random images they are trained on, and the jobs that `training` makes of them.

ResNet-18, WRN-28-10 and ResNet-50 are the catalog's: its ResNet-18 has ImageNet's stem (stride 2, then a pool), so that at
32 px it is a test of launches more than of arithmetic. The catalog's smallest ViT is ViT-B/16; ViT-S/16 is added to the
process's own catalog.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from wbar import catalog
from wbar.method import METHODS
from wbar.recipe import IMAGENET, Optimizer, Recipe
from wbar.spec import JobSpec, Network, StoredDataset, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training.networks import architectures
from wbar_training.networks.architectures import initialized
from wbar_training.uploads.dataset_archives import write_packed
from wbar_training.workspace import Workspace

VIT_S = "vit_small_16"
STEPS = 10_000  # of a job, about: as many log points as a job of the usual length has
HELD_OUT = 64
MOMENTUM = 0.9


@dataclass(frozen=True)
class Case:
    """One network with its images and recipe. images: of the training split; size: pixels per side."""

    name: str
    network: Network
    size: int
    images: int
    batch: int
    precision: Literal["bfloat16", "tf32", "float32"] = "bfloat16"
    optimizer: Literal["sgd", "adamw"] = "sgd"

    @property
    def lr(self) -> float:
        """A rate that random labels do not diverge at."""
        return 0.01 if self.optimizer == "sgd" else 1e-4

    @property
    def weight_decay(self) -> float:
        return 5e-4 if self.optimizer == "sgd" else 0.05

    def quick(self) -> "Case":
        """The same on a processor, to see that everything works."""
        small = Network("resnet20", 10) if self.network.name != VIT_S else self.network
        return Case(self.name, small, 32, 64, 8, "float32", self.optimizer)


CASES = {
    case.name: case
    for case in (
        Case("resnet18_32", Network("resnet18", 10), 32, 20_480, 128),
        Case("wrn28_10_32", Network("wide_resnet28_10", 10), 32, 20_480, 128),
        Case("resnet50_224", Network("resnet50", 1000), 224, 2048, 128),
        Case("vit_s_224", Network(VIT_S, 1000), 224, 2048, 128, optimizer="adamw"),
        Case("resnet20_28", Network("resnet20", 10), 28, 20_480, 512),  # what the gain at full size trains
        Case("resnet18_32_tf32", Network("resnet18", 10), 32, 20_480, 128, precision="tf32"),
    )
}
MAIN = ("resnet18_32", "wrn28_10_32", "resnet50_224", "vit_s_224")


def know_vit_s(size: int) -> None:
    """Add ViT-S/16 (Touvron et al. 2021: 12 layers of 384 with 6 heads) to this process's catalog."""

    def build(num_classes: int, channels: int) -> nn.Module:
        assert channels == 3
        model: nn.Module = VisionTransformer(size, 16, 12, 6, 384, 1536, num_classes=num_classes)
        return model

    architectures.CIFAR[VIT_S] = build
    catalog.ARCHITECTURES[VIT_S] = catalog.Architecture(VIT_S, "vit", size, size, fixed_size=True, optimizer="adamw")


def fresh(case: Case) -> nn.Module:
    """The network as it is initialized, in channels_last, on the CPU; the same in every process."""
    if case.network.name == VIT_S:
        know_vit_s(case.size)
    torch.manual_seed(0)
    return initialized(case.network).to(memory_format=torch.channels_last).train()


def pixels(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Random uint8 images (N, 3, H, W) and random labels (N,), on the CPU; the same in every process."""
    draws = torch.Generator().manual_seed(1)
    shape = (case.images + HELD_OUT, 3, case.size, case.size)
    images = torch.randint(256, shape, generator=draws, dtype=torch.uint8)
    return images, torch.randint(case.network.num_classes, (len(images),), generator=draws)


def job_of(
    case: Case, folder: Path, device: str, threads: int | None = None, **recipe: Any
) -> tuple[JobSpec, Workspace]:
    """The job that trains the case's network; its files lie in `folder`. recipe: options beside the case's own."""
    workspace = Workspace(folder, device=device, threads=threads, save_every_seconds=1e9)
    write_safetensors(workspace.input("start"), dict(fresh(case).state_dict()), {})
    images, labels = pixels(case)
    count = case.images
    tensors = {"train.images": images[:count], "train.labels": labels[:count]}
    tensors |= {"val.images": images[count:], "val.labels": labels[count:]}
    names = [str(label) for label in range(case.network.num_classes)]
    write_packed(workspace.input("dataset"), tensors, names, images[:count], None, [])
    options: dict[str, Any] = {
        "optimizer": Optimizer(name=case.optimizer, momentum=MOMENTUM, weight_decay=case.weight_decay),
        "batch_size": case.batch,
        "image_size": (case.size, case.size),
        "normalize": IMAGENET,
        "augment": "pad_crop_flip",
        "precision": case.precision,
        "batch_norm": "recompute",
    }
    epochs = max(1.0, STEPS * case.batch / case.images / 2)  # of each of two phases
    method = {"cycles": 1, "high": {"lr": case.lr, "epochs": epochs}, "low": {"lr": case.lr, "epochs": epochs}}
    method |= {"pull": 5e-4, "control_lr": case.lr, "guard": False}
    spec = JobSpec(
        start=StoredWeights(id="start", sha256="", blob="start", prefix="", network=case.network),
        dataset=StoredDataset(id="dataset", sha256="", blob="dataset"),
        network=case.network,
        classes=None,
        method=METHODS.validate_python(method),
        recipe=Recipe(**(options | recipe)),
        seed=0,
    )
    return spec, workspace
