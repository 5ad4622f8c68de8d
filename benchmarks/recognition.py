"""What recognising a large checkpoint costs beyond reading it: a ViT-B/16 of 346 MB, from the 202 of its upload until `ready`.

The same network of each library: torchvision's as a safetensors file and as `torch.save` writes it, timm's once the service
has its table of timm's networks, and transformers' as a zip of its folder; the last two where they are installed. Each
repetition sends other weights, so that nothing is recognised by its digest. The peer reads the same file once, tensor by
tensor, and looks whether all of it is finite, which is the least that whoever trusts a checkpoint has to do.

A virtual machine whose host takes free memory back pays for each page that is used first, here 2 s a GB, in whatever process
that happens. Both sides are measured on memory that was used before; `used_memory=False` leaves that out.
"""

import importlib.util
import mmap
import tempfile
import time
import zipfile
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load, load_file
from torch import Tensor

from benchmarks.running import Service, running, wait_until
from benchmarks.table import Findings, Row, Sample, figure
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks import timm_table
from wbar_training.networks.architectures import initialized

CLASSES = 1000
SETTLED_SECONDS = 900.0  # a table of networks takes minutes of one core at the lowest priority
GOAL = 1.0  # seconds
# Bytes that are used before each measure: more than the upload, what it unpacks to and what is stored.
MEMORY = 3 * 1024**3


class Upload(ABC):
    """A network in one of the forms that people have it in. label: of the row. suffix: of the file."""

    label: str
    suffix: str

    @abstractmethod
    def write(self, path: Path, bias: float) -> None:
        """Write the network; bias: of its head, which makes it another file."""

    @abstractmethod
    def read(self, path: Path) -> dict[str, Tensor]:
        """Return the file's tensors."""


class Torchvision(Upload):
    """torchvision's, as a safetensors file of nothing but its tensors, or as `torch.save` writes it."""

    def __init__(self, suffix: str) -> None:
        self.label, self.suffix = f"torchvision, {suffix}", suffix
        self._state = dict(initialized(Network("vit_b_16", num_classes=CLASSES)).state_dict())

    def write(self, path: Path, bias: float) -> None:
        state = self._state | {"heads.head.bias": torch.full((CLASSES,), bias)}
        if self.suffix == ".pth":
            torch.save(state, path)
        else:
            write_safetensors(path, state, {})

    def read(self, path: Path) -> dict[str, Tensor]:
        return torch.load(path, weights_only=True) if self.suffix == ".pth" else load_file(path)


class Timm(Upload):
    """timm's, as a safetensors file that says nothing about itself."""

    label, suffix = "timm, .safetensors", ".safetensors"

    def __init__(self) -> None:
        import timm

        self._state: dict[str, Tensor] = timm.create_model("vit_base_patch16_224").state_dict()

    def write(self, path: Path, bias: float) -> None:
        write_safetensors(path, self._state | {"head.bias": torch.full((CLASSES,), bias)}, {})

    def read(self, path: Path) -> dict[str, Tensor]:
        return load_file(path)

    def is_settled(self, service: Service) -> bool:
        """Return whether the table of timm's networks, which the first upload asks for, is there."""
        return timm_table.path_in(service.data / "scratch" / "architectures").exists()


class Transformers(Upload):
    """transformers', as a zip of what `save_pretrained` writes."""

    label, suffix = "transformers, a zip of its folder", ".zip"

    def __init__(self) -> None:
        from transformers import ViTConfig, ViTForImageClassification

        config = ViTConfig()
        config.num_labels = CLASSES
        self._model: Any = ViTForImageClassification(config)

    def write(self, path: Path, bias: float) -> None:
        with torch.no_grad():
            self._model.classifier.bias.fill_(bias)
        with tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder, zipfile.ZipFile(path, "w") as archive:
            self._model.save_pretrained(folder)
            for file in sorted(Path(folder).iterdir()):
                archive.write(file, file.name)

    def read(self, path: Path) -> dict[str, Tensor]:
        with zipfile.ZipFile(path) as archive:
            return load(archive.read("model.safetensors"))

    def is_settled(self, service: Service) -> bool:
        """Return whether the service has listed the library's networks, which it begins when it starts."""
        headers = {"Authorization": f"Bearer {service.api_key}"}
        answer = httpx.get(f"{service.url}/v1/architectures", params={"q": "ViTForImage"}, headers=headers)
        return bool(answer.raise_for_status().json()["data"])


def measure(quick: bool, used_memory: bool = True) -> Findings:
    repetitions = 2 if quick else 7
    uploads: list[Upload] = [Torchvision(".safetensors"), Torchvision(".pth")]
    if importlib.util.find_spec("transformers"):
        uploads.append(Transformers())
    if importlib.util.find_spec("timm") and not quick:
        uploads.append(Timm())
    ready: dict[str, list[float]] = {upload.label: [] for upload in uploads}
    reading: dict[str, list[float]] = {upload.label: [] for upload in uploads}
    with (
        running(transformers=any(isinstance(one, Transformers) for one in uploads)) as service,
        tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder,
    ):
        for n in range(1 + repetitions):  # the first loads what recognition needs
            for upload in uploads:
                path = Path(folder) / f"vit{upload.suffix}"
                upload.write(path, float(n))
                if used_memory:
                    _use_memory()
                ready[upload.label].append(_until_ready(service, path))
                reading[upload.label].append(_read(upload, path))
            if n == 0:
                for upload in uploads:
                    if not isinstance(upload, Timm | Transformers):
                        continue
                    wait_until(
                        partial(upload.is_settled, service), SETTLED_SECONDS, f"{upload.label} to be known", poll=1
                    )
    rows = [_row(label, ready[label][1:], reading[label][1:]) for label in ready]
    first = ready[uploads[0].label][0]
    return Findings(rows, [f"the first upload after the start took {figure(first)} s until `ready`"])


def _row(label: str, ready: list[float], reading: list[float]) -> Row:
    beyond = Sample([ours - theirs for ours, theirs in zip(ready, reading, strict=True)])
    found, peer = Sample(ready), Sample(reading)
    return Row(
        f"a ViT-B/16 of 346 MB, {label}: from the upload's answer until it is `ready`",
        f"{found}; beyond reading: {figure(beyond.median)} s",
        f"reading the file, all finite? {peer}",
        f"{found.median / peer.median:.2f}",
        f"≤ {GOAL:g} s beyond reading",
        beyond.median <= GOAL,
    )


def _use_memory() -> None:
    """Use every page of MEMORY once, and free it, so that who asks for memory next gets these."""
    with mmap.mmap(-1, MEMORY) as memory:
        for page in range(0, MEMORY, mmap.PAGESIZE):
            memory[page] = 1


def _until_ready(service: Service, path: Path) -> float:
    """Upload the file with one request, whose answer comes as its row is made; return the seconds until it is `ready`."""
    headers = {"Authorization": f"Bearer {service.api_key}", "Content-Type": "application/octet-stream"}
    with open(path, "rb") as content:
        answer = httpx.post(f"{service.url}/v1/checkpoints", content=content, headers=headers, timeout=300)
    began = time.perf_counter()
    checkpoint = service.client.checkpoints.get(answer.raise_for_status().json()["id"])
    while checkpoint.status == "processing":
        time.sleep(0.01)
        checkpoint = service.client.checkpoints.get(checkpoint.id)
    if checkpoint.status != "ready":
        raise RuntimeError(f"{path} was not recognised: {checkpoint.error}")
    return time.perf_counter() - began


def _read(upload: Upload, path: Path) -> float:
    began = time.perf_counter()
    for name, tensor in upload.read(path).items():
        if not bool(torch.isfinite(tensor).all()):
            raise RuntimeError(f"{name} is not finite")
    return time.perf_counter() - began
