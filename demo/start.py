"""The checkpoint a user would come with: a ResNet-20 trained to convergence on the training split only.

Plain training, none of it averaged: SGD with Nesterov momentum, weight decay, pad-crop(-flip), the rate falling along a
cosine to zero. The held-out images are never looked at.
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

from wbar.recipe import Normalization, Optimizer, Recipe
from wbar.resolve import resolve_augment
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.data.augment import Preparer
from wbar_training.data.packed import Packed, load_split
from wbar_training.draws import key, permutation
from wbar_training.networks.architectures import initialized
from wbar_training.optim import make_optimizer
from wbar_training.plan import Plan
from wbar_training.uploads.dataset_archives import pack_builtin

ARCHITECTURE, PEAK_LR, SEED = "resnet20", 0.1, 0


def train_start(
    dataset: str, images: int | None, epochs: int, folder: Path, tell: Callable[[float, str], None]
) -> Path:
    """Train, or take from `folder` what an earlier run trained; the path of the safetensors file."""
    out = folder / f"start-{dataset.removeprefix('builtin:')}-{images or 'all'}-{epochs}.safetensors"
    if out.exists():
        return out
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "start-data.safetensors"
    packed = pack_builtin(dataset.removeprefix("builtin:"), data, images)
    split = load_split(data, "train", (packed.height, packed.width), None)
    plan = _plan(packed, dataset)
    torch.manual_seed(SEED)
    model = initialized(Network(ARCHITECTURE, len(packed.classes))).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, plan)
    prepare = Preparer(plan.mean, plan.std, plan.augment, SEED, torch.device("cpu"))
    per_epoch = -(-len(split) // plan.batch_size)
    steps, step = epochs * per_epoch, 0
    for epoch in range(epochs):
        correct = 0
        for chosen in permutation(len(split), SEED, "start-order", epoch).split(plan.batch_size):
            torch.manual_seed(key(SEED, "start", step))
            labels = split.labels[chosen]
            logits = model(prepare.augmented(split.images[chosen], "start-augment", step))
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits, labels).backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * PEAK_LR * (1 + math.cos(math.pi * step / steps))
            optimizer.step()
            correct += int((logits.argmax(1) == labels).sum())
            step += 1
        tell((epoch + 1) / epochs, f"epoch {epoch + 1}/{epochs}, training accuracy {correct / len(split):.2%}")
    write_safetensors(out, model.state_dict(), {"demo": str(asdict(packed)["classes"])})
    data.unlink()
    return out


def _plan(packed: Packed, dataset: str) -> Plan:
    channels = 3
    return Plan.of(
        Recipe(
            optimizer=Optimizer(name="sgd", weight_decay=5e-4),
            batch_size=128 if packed.images["train"] >= 2560 else 64,
            image_size=(packed.height, packed.width),
            normalize=Normalization(mean=packed.mean * channels, std=packed.std * channels),
            augment=resolve_augment(dataset),
            precision="float32",
            batch_norm="track",
        ),
        SEED,
    )
