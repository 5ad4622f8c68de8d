"""Things to upload: a small archive of real scans and a checkpoint that has learned a little of them."""

import io
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized

TRAIN, VAL = 12, 6  # images per class


@cache
def archive_bytes() -> bytes:
    """A zip of 120 training and 60 held-out digits, 8 × 8 grey PNGs in ten folders."""
    digits = load_digits()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for label in range(10):
            for position, index in enumerate(np.flatnonzero(digits.target == label)[: TRAIN + VAL]):
                pixels = (digits.images[index] * 15.9).astype(np.uint8)
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, "PNG")
                split = "train" if position < TRAIN else "val"
                archive.writestr(zipfile.ZipInfo(f"{split}/{label}/{index:04d}.png"), png.getvalue())
    return out.getvalue()


def turned_archive(rename: str = "") -> bytes:
    """The archive of the tests with its images turned by 180°; rename: what is put before the names of the classes."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive_bytes())) as given, zipfile.ZipFile(out, "w") as made:
        for name in given.namelist():
            split, label, file = name.split("/")
            png = io.BytesIO()
            Image.fromarray(np.asarray(Image.open(io.BytesIO(given.read(name))))[::-1, ::-1].copy()).save(png, "PNG")
            made.writestr(zipfile.ZipInfo(f"{split}/{rename}{label}/{file}"), png.getvalue())
    return out.getvalue()


@cache
def start_state(steps: int = 25) -> dict[str, torch.Tensor]:
    """A ResNet-20 after a few steps on other digits than the archive's: better than chance, far from done."""
    digits = load_digits()
    torch.manual_seed(0)
    model = initialized(Network("resnet20", 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    images = (torch.from_numpy(digits.images[-640:]).float()[:, None] / 16 - 0.3) / 0.37
    labels = torch.from_numpy(digits.target[-640:]).long()
    for step in range(steps):
        chosen = torch.arange(step * 64, step * 64 + 64) % 640
        loss = F.cross_entropy(model(images[chosen].expand(-1, 3, -1, -1)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def write_archive(folder: Path) -> Path:
    path = folder / "digits.zip"
    path.write_bytes(archive_bytes())
    return path


def write_start(folder: Path, prefix: str = "") -> Path:
    path = folder / "start.safetensors"
    write_safetensors(path, {prefix + name: tensor for name, tensor in start_state().items()}, {})
    return path


def write_part(folder: Path, classes: str = "01234") -> Path:
    """The archive's training images of some of its classes, without held-out ones."""
    path = folder / "part.zip"
    with zipfile.ZipFile(io.BytesIO(archive_bytes())) as whole, zipfile.ZipFile(path, "w") as part:
        for name in whole.namelist():
            if name.startswith("train/") and name.split("/")[1] in classes:
                part.writestr(zipfile.ZipInfo(name), whole.read(name))
    return path
