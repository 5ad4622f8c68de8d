"""The averaged weights as an MLflow model: `mlflow.pyfunc.load_model("runs:/…/model").predict(images)`.

The weights' own header says how they are used: nothing else is read, and no service is asked.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from wbar.spec import Network
from wbar_training.losses import class_logits
from wbar_training.networks.architectures import load
from wbar_training.networks.detectors import DETECTION, found_by
from wbar_training.networks.programs import in_metadata, learn
from wbar_training.networks.recognition import identify
from wbar_training.uploads.checkpoint_files import common_prefix


class AveragedModel:
    """The network with its averaged weights, on the CPU.

    classes: names, in the order of the columns that `predict` returns.
    attributes: of the task of that name, the columns of each attribute, whose softmax is over these alone; else empty.
    """

    def __init__(self, weights: Path) -> None:
        with safe_open(weights, framework="pt") as file:
            header: dict[str, str] = file.metadata()
            named = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        prefix = common_prefix(named)
        tensors = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        name, outputs, program = header["wbar.architecture"], int(header["wbar.num_classes"]), in_metadata(header)
        config = header.get("wbar.config")  # of a network of transformers, which it builds
        if program is not None:
            network = replace(learn(program), num_classes=outputs)
        else:
            network = identify(name, shapes, outputs) if config is None else Network(name, outputs, config=config)
        self._module = load(network, tensors)[0].eval()
        self.classes: list[str] = json.loads(header["wbar.classes"])
        self.attributes: dict[str, list[int]] = json.loads(header.get("wbar.attributes", "{}"))
        self._size: list[int] = json.loads(header["wbar.image_size"])
        self._any_size = header.get("wbar.resize") == "none"  # of segmentation and detection
        self._finds_boxes = network.name in DETECTION
        targets = json.loads(header.get("wbar.targets", "null"))  # of regression
        self._units = targets and tuple(torch.tensor(targets[key], dtype=torch.float64) for key in ("mean", "std"))
        normalize = json.loads(header["wbar.normalize"])
        self._mean, self._std = (torch.tensor(normalize[key]).view(1, -1, 1, 1) for key in ("mean", "std"))

    def predict(self, images: NDArray[np.floating[Any]], params: Any = None) -> NDArray[np.float32]:  # noqa: ARG002
        """Return the classes' logits, float32: (N, classes), or (N, classes, height, width) of segmentation.

        Of regression it returns (N, targets), in the targets' own units.

        Of detection it returns (N, most, 6): of each box its class, its score and its corners (left, top, right, bottom) in
        pixels, the surest first; rows that only fill up have the class −1.

        images: (N, channels, height, width), pixels in [0, 1], in the size that the weights were trained for; of segmentation
            and detection in any.
        params: MLflow passes them; there are none. Raises ValueError for another shape.
        """
        wanted = self._size[:1] if self._any_size else self._size
        if images.ndim != 4 or list(images.shape[1 : 1 + len(wanted)]) != wanted:
            sides = f"{wanted[0]}, height, width]" if self._any_size else str(wanted)[1:]
            raise ValueError(f"images of {list(images.shape)}, and the network takes [N, {sides}")
        pixels = torch.from_numpy(np.ascontiguousarray(images, np.float32))
        with torch.inference_mode():
            if self._finds_boxes:
                return _boxes(found_by(self._module, pixels))
            outputs = self._module((pixels - self._mean) / self._std)
            if self._units:
                predictions: NDArray[np.float32] = (outputs.double() * self._units[1] + self._units[0]).float().numpy()
                return predictions
            logits: NDArray[np.float32] = class_logits(outputs["out"] if isinstance(outputs, dict) else outputs).numpy()
        return logits


def _boxes(found: Sequence[Mapping[str, Tensor]]) -> NDArray[np.float32]:
    filled = np.zeros((len(found), max((len(one["scores"]) for one in found), default=0), 6), np.float32)
    filled[..., 0] = -1
    for rows, one in zip(filled, found, strict=True):
        own = torch.cat([one["labels"][:, None].float(), one["scores"][:, None], one["boxes"]], dim=1)
        rows[: len(own)] = own[one["scores"].argsort(descending=True, stable=True)].numpy()
    return filled


def _load_pyfunc(path: str) -> AveragedModel:
    """Load the model; MLflow calls it, with the path of the weights."""
    return AveragedModel(Path(path))
