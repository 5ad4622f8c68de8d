"""The files of a job's result: the uploaded names and dtypes, and metadata enough to use the weights without asking.

Nothing in a file differs between two runs of the same work: no ids, no times, sorted headers.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from wbar import __version__
from wbar.choices import Delivered
from wbar.results import WeightsFile
from wbar.spec import JobSpec, canonical
from wbar_averaging import write_safetensors
from wbar_training.data.augment import RESIZED
from wbar_training.distributed.ranks import Ranks
from wbar_training.networks import architectures
from wbar_training.networks.programs import known, metadata_of
from wbar_training.networks.tensors import read_tensors
from wbar_training.outcome import WeightsFiles
from wbar_training.plan import Plan
from wbar_training.tasks.attributes import Attributes
from wbar_training.tasks.regression import Regression
from wbar_training.tasks.task import Task
from wbar_training.workspace import Workspace


class Uploaded(NamedTuple):
    """A tensor of the uploaded file. own: its name in the network."""

    own: str
    tensor: Tensor


class ResultWriter:
    """Writes tensors under the uploaded names and dtypes, with the contract's metadata, and reads such files again.

    Tensors go in and come out under the network's own names: the prefix of the uploaded names is added in the file.
    """

    def __init__(
        self, spec: JobSpec, workspace: Workspace, plan: Plan, output_names: list[str], task: Task | None = None
    ) -> None:
        self._network, self._prefix, self.scratch = spec.network, spec.start.prefix, workspace.scratch
        self._uploaded = read_tensors(workspace.input(spec.start.blob))
        own = architectures.own_names(spec.network, [name.removeprefix(self._prefix) for name in self._uploaded])
        self._own = {name: own[name.removeprefix(self._prefix)] for name in self._uploaded}
        self._dtypes = {self._own[name]: tensor.dtype for name, tensor in self._uploaded.items()}
        self._metadata = {
            "wbar.architecture": spec.network.name,
            **({"wbar.config": spec.network.config} if spec.network.config is not None else {}),
            "wbar.num_classes": str(spec.network.num_classes),
            "wbar.classes": canonical(output_names),
            "wbar.image_size": canonical([spec.network.channels, *plan.image_size]),
            # How images of other sizes come to this one: both sides, or the short side to more of it and then the centre.
            # Segmentation and detection take images at their own size: there is nothing to resize.
            "wbar.resize": _resize(spec, plan),
            **_fit(plan),
            "wbar.start_sha256": spec.start.sha256,
            "wbar.dataset_sha256": spec.dataset.sha256,
            "wbar.run": spec.run_digest(),
            "wbar.version": __version__,
        }
        if isinstance(task, Regression):
            self._metadata["wbar.targets"] = canonical(task.units())
        if isinstance(task, Attributes):
            self._metadata["wbar.attributes"] = canonical(task.groups.outputs)
        if spec.network.program is not None:
            self._metadata |= metadata_of(known(spec.network.program))
        self.normalize_by(plan.mean, plan.std)

    def normalize_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the normalization in the metadata: one mean and standard deviation per channel, for pixels in [0, 1]."""
        self._metadata["wbar.normalize"] = canonical({"mean": list(mean), "std": list(std)})

    def start(self) -> dict[str, Tensor]:
        """Return the uploaded tensors, in their own dtypes."""
        return {self._own[name]: tensor for name, tensor in self._uploaded.items()}

    def uploaded(self) -> dict[str, Uploaded]:
        """Return the uploaded tensors by their uploaded names."""
        return {name: Uploaded(self._own[name], tensor) for name, tensor in self._uploaded.items()}

    def write_tensors(self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write a safetensors file of these tensors, by the names that they have there, with the metadata of all files."""
        write_safetensors(
            path, {name: tensor.contiguous() for name, tensor in tensors.items()}, {**self._metadata, **metadata}
        )

    def dtype(self, name: str) -> torch.dtype | None:
        """Return the uploaded dtype of the network's tensor `name`; None if it was not uploaded."""
        return self._dtypes.get(name)

    def write(
        self,
        path: Path,
        tensors: Mapping[str, Tensor],
        snapshots: int,
        n: int | None = None,
        temperature: float | None = None,
        exact: bool = False,
    ) -> None:
        """Write one safetensors file; uploaded tensors beyond the network's (auxiliary heads) are written unchanged.

        snapshots: how many points are averaged in it.
        n: of a snapshot, its number.
        temperature: that its score has; it is metadata, and changes no tensor.
        exact: half-precision tensors are written in float32, as they are trained.
        """
        out = {}
        for name, uploaded in self._uploaded.items():
            value = tensors.get(self._own[name])
            dtype = _at_least_float32(uploaded.dtype) if exact else uploaded.dtype
            out[name] = uploaded if value is None else value.detach().to("cpu", dtype)
        metadata = self._metadata | {"wbar.snapshots": str(snapshots)}
        if n is not None:
            metadata["wbar.snapshot"] = str(n)
        if temperature is not None:
            metadata["wbar.temperature"] = canonical(temperature)
        write_safetensors(path, out, metadata)

    def write_result(
        self, tensors: Mapping[str, Tensor], snapshots: int, temperature: float | None, name: Delivered = "averaged"
    ) -> WeightsFiles:
        """Write a network in both formats, safetensors and PyTorch's; they are there when any rank goes on."""
        weights = self.scratch / f"{name}.safetensors"
        pytorch = weights.with_suffix(".pth")
        ranks = Ranks.here()
        if ranks.leads:
            self.write(weights, tensors, snapshots, temperature=temperature)
            torch.save(architectures.as_torch_saves(self._network, read_tensors(weights), self._prefix), pytorch)
        ranks.from_leader(None)
        return WeightsFiles(weights, pytorch)

    def write_losses(self, averaged: Tensor, start: Tensor) -> Path:
        """Write the loss of each image of the report split, (N,) in nats, of w̄ and of the start; returns the JSON file."""
        path = self.scratch / "losses.json"
        if Ranks.here().leads:
            columns = {"averaged": averaged, "start": start}
            path.write_text(json.dumps({name: [float(f"{x:.7g}") for x in one] for name, one in columns.items()}))
        return path

    def snapshot(self, path: Path) -> dict[str, Tensor]:
        """Return the tensors of a file that was written by `write`, in its dtypes, by the network's own names."""
        return {self._own[name]: tensor for name, tensor in read_tensors(path).items()}

    def read(self, path: Path, prefix: str | None = None) -> dict[str, Tensor]:
        """Return a file's tensors as a whole state dict of the network, float32, on the CPU.

        prefix: the part of the file's names before the network's own; by default the start's.
        """
        prefix = self._prefix if prefix is None else prefix
        tensors = {name.removeprefix(prefix): tensor for name, tensor in read_tensors(path).items()}
        model, _ = architectures.load(self._network, tensors)
        return dict(model.state_dict())


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


def _resize(spec: JobSpec, plan: Plan) -> str:
    if spec.network.architecture.outputs != "image":
        return "none"
    return "centre" if plan.augment in RESIZED else "both"


def _fit(plan: Plan) -> dict[str, str]:
    """Return the metadata of how images are resized, where it is not the usual."""
    metadata = {"wbar.crop_ratio": canonical(plan.recipe.crop_ratio), "wbar.interpolation": plan.recipe.interpolation}
    usual = {"wbar.crop_ratio": "0.875", "wbar.interpolation": "bilinear"}
    return {name: value for name, value in metadata.items() if value != usual[name]}


def weights_file(path: Path) -> WeightsFile:
    """Return the size and the sha256 of a file, as a result names it."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return WeightsFile(bytes=path.stat().st_size, sha256=sha256)
