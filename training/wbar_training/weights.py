"""The files a job gives back: the uploaded names and dtypes, and metadata enough to use the weights without asking.

Nothing in a file differs between two runs of the same work: no ids, no times, sorted headers.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from wbar import __version__
from wbar_averaging import write_safetensors
from wbar_training.data.augment import RESIZED
from wbar_training.plan import Work


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def run_digest(work: Work) -> str:
    """The sha256 of everything the weights are a function of, on the same hardware and thread count."""
    inputs = {
        "start": work.start_sha256,
        "dataset": work.dataset_sha256,
        "method": work.method,
        "recipe": work.recipe,
        "seed": work.seed,
        "classes": work.classes,
        "version": __version__,
    }
    if work.ingredients:
        # By content: ids differ between two runs of the same work.
        digests = [ingredient.sha256 for ingredient in work.ingredients]
        inputs["method"] = {**work.method, "checkpoints": digests}
    if work.teachers:
        named = {**work.recipe["distillation"], "teacher": [teacher.sha256 for teacher in work.teachers]}
        inputs["recipe"] = {**work.recipe, "distillation": named}
    return hashlib.sha256(canonical(inputs).encode()).hexdigest()


class WeightsWriter:
    """Writes tensors under the uploaded names and dtypes, with the metadata of the contract."""

    def __init__(self, work: Work, classes: list[str]) -> None:
        plan = work.plan()
        self._prefix = work.prefix
        self._uploaded = read_tensors(work.checkpoint)
        self._metadata = {
            "wbar.architecture": work.network.name,
            "wbar.num_classes": str(work.network.num_classes),
            "wbar.classes": canonical(classes),
            "wbar.image_size": canonical([work.network.channels, *plan.image_size]),
            "wbar.normalize": canonical({"mean": list(plan.mean), "std": list(plan.std)}),
            # How images of other sizes come to this one: both sides, or the short side to 8/7 of it and then the centre.
            "wbar.resize": "centre" if plan.augment in RESIZED else "both",
            "wbar.start_sha256": work.start_sha256,
            "wbar.dataset_sha256": work.dataset_sha256,
            "wbar.run": run_digest(work),
            "wbar.version": __version__,
        }

    def start(self) -> dict[str, Tensor]:
        """The uploaded tensors under the network's own names."""
        return {name.removeprefix(self._prefix): tensor for name, tensor in self._uploaded.items()}

    def dtype(self, name: str) -> torch.dtype | None:
        """The uploaded dtype of the network's tensor `name`; None if it was not uploaded."""
        tensor = self._uploaded.get(self._prefix + name)
        return None if tensor is None else tensor.dtype

    def write(self, path: Path, tensors: Mapping[str, Tensor], snapshots: int, n: int | None = None) -> None:
        """tensors: under the network's names; what the upload had beyond them (auxiliary heads) is written unchanged."""
        out = {}
        for name, uploaded in self._uploaded.items():
            value = tensors.get(name.removeprefix(self._prefix))
            out[name] = uploaded if value is None else value.detach().to("cpu", uploaded.dtype)
        metadata = self._metadata | {"wbar.snapshots": str(snapshots)}
        if n is not None:
            metadata["wbar.snapshot"] = str(n)
        write_safetensors(path, out, metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, by name, in their own dtype."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # a safetensors handle is no dict


def output_names(classes: list[str], num_classes: int) -> list[str]:
    """One name per output: outputs that the dataset has no class for are called by their index."""
    return classes + [str(index) for index in range(len(classes), num_classes)]
