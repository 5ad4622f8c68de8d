"""The peer of a job: the training loop one would write by hand, with nothing around it. A program of its own.

Reads what to do from stdin as JSON, writes images and seconds of every step to stdout as JSON. The same network,
images, batch, memory format, optimizer and kind of augmentation as the job, and none of its pull, norms, reports,
reproducible draws, snapshots and resumable states.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.start import NETWORK
from wbar_training.networks.architectures import load


def augment(images: Tensor, flip: bool) -> Tensor:
    """Pad by an eighth, crop at random, mirror at random: the whole batch in one gather, where the images are."""
    batch, _, height, width = images.shape
    y, x, where = max(1, height // 8), max(1, width // 8), images.device
    rows = torch.randint(2 * y + 1, (batch, 1), device=where) + torch.arange(height, device=where)
    columns = torch.randint(2 * x + 1, (batch, 1), device=where) + torch.arange(width, device=where)
    if flip:
        columns = torch.where(torch.rand(batch, 1, device=where) < 0.5, columns.flip(1), columns)
    padded = F.pad(images, (x, x, y, y))
    cropped = padded[torch.arange(batch, device=where)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on convolution and linear weights only, as the job has it."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def train(task: dict[str, Any]) -> list[tuple[int, float]]:
    """task: checkpoint, dataset, threads, epochs, batch_size, lr, momentum, weight_decay, mean, std, flip."""
    torch.set_num_threads(task["threads"])
    data = load_file(task["dataset"])
    images, labels = data["train.images"], data["train.labels"]
    model, _ = load(NETWORK, load_file(Path(task["checkpoint"])))
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        groups(model, task["weight_decay"]), lr=task["lr"], momentum=task["momentum"], nesterov=True, fused=True
    )
    mean = 255 * torch.tensor(task["mean"]).view(1, -1, 1, 1)
    scale = 1 / (255 * torch.tensor(task["std"]).view(1, -1, 1, 1))
    steps: list[tuple[int, float]] = []
    began = time.perf_counter()
    for _ in range(task["epochs"]):
        for chosen in torch.randperm(len(labels)).split(task["batch_size"]):
            if len(chosen) == 1:
                continue  # BatchNorm needs two
            batch = augment(images[chosen], task["flip"]).float().sub_(mean).mul_(scale)
            inputs = batch.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(inputs), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            now = time.perf_counter()
            steps.append((len(chosen), now - began))
            began = now
    if not torch.isfinite(loss):
        raise RuntimeError("the bare loop diverged: its speed is not that of training")
    return steps


if __name__ == "__main__":
    json.dump(train(json.load(sys.stdin)), sys.stdout)
