"""The checkpoint a user could come with: a ResNet-20 whose training was stopped after a third, on the training split only.

Plain training, none of it averaged: SGD with Nesterov momentum, weight decay, pad-crop(-flip), the first third of a cosine
to zero. The held-out images are never looked at.
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F

from wbar.recipe import Normalization, Optimizer, Recipe
from wbar.recipe_defaults import resolve_augment
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.data.augment import Preparer
from wbar_training.data.packed import Packed, load_split
from wbar_training.draws import key, permutation
from wbar_training.networks.architectures import initialized
from wbar_training.optim import make_optimizer
from wbar_training.plan import Plan
from wbar_training.uploads.dataset_archives import pack_builtin

ARCHITECTURE, PEAK_LR, STOPPED_AT = "resnet20", 0.1, 1 / 3
Told: TypeAlias = SimpleQueue[tuple[int, float, str] | None]
_told: Told


def train_start(
    dataset: str, images: int | None, epochs: int, seed: int, folder: Path, tell: Callable[[float, str], None]
) -> Path:
    """Train, or take from `folder` what an earlier run trained; the path of the safetensors file.

    epochs: of the whole cosine, of which STOPPED_AT is walked.
    """
    out = folder / f"start-{dataset.removeprefix('builtin:')}-{images or 'all'}-{seed}.safetensors"
    if out.exists():
        return out
    folder.mkdir(parents=True, exist_ok=True)
    data = out.with_suffix(".data")
    packed = pack_builtin(dataset.removeprefix("builtin:"), data, images)
    split = load_split(data, "train", (packed.height, packed.width), None)
    plan = _plan(packed, dataset, seed)
    torch.manual_seed(seed)
    model = initialized(Network(ARCHITECTURE, len(packed.classes))).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, plan)
    prepare = Preparer(plan.mean, plan.std, plan.augment, seed, torch.device("cpu"))
    per_epoch = -(-len(split) // plan.batch_size)
    steps, step, walked = epochs * per_epoch, 0, round(epochs * STOPPED_AT)
    for epoch in range(walked):
        correct = 0
        for chosen in torch.split(permutation(len(split), seed, "start-order", epoch), plan.batch_size):
            torch.manual_seed(key(seed, "start", step))
            labels = split.labels[chosen]
            logits = model(prepare.augmented(split.images[chosen], "start-augment", step))
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * PEAK_LR * (1 + math.cos(math.pi * step / steps))
            optimizer.step()
            correct += int((logits.argmax(1) == labels).sum())
            step += 1
        tell(
            (epoch + 1) / walked,
            f"seed {seed}, epoch {epoch + 1} of {epochs}, training accuracy {correct / len(split):.2%}",
        )
    write_safetensors(out, model.state_dict(), {"demo": str(asdict(packed)["classes"])})
    data.unlink()
    return out


def begin_process(told: Told) -> None:
    """Prepare a process that trains one start of several: one thread for its own, and where it tells how far it is."""
    global _told
    _told = told
    torch.set_num_threads(1)


def train_in_process(dataset: str, images: int | None, epochs: int, seed: int, folder: Path) -> Path:
    """`train_start` in a process of `begin_process`; puts (seed, share done, text) into its queue."""
    return train_start(dataset, images, epochs, seed, folder, lambda done, text: _told.put((seed, done, text)))


def _plan(packed: Packed, dataset: str, seed: int) -> Plan:
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
        seed,
    )
