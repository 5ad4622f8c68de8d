"""The two splits of a packed dataset, each one uint8 tensor of images of one size and one tensor of labels.

The packed file (see `wbar_training.uploads.dataset_archives`) is a safetensors file that holds, per split, either
`images` (N, C, H, W) or, where the images have many sizes, their encoded files end to end in `encoded` with `offsets`;
and `labels`. The file's metadata names classes, statistics and shape.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from wbar.datasets import Task
from wbar.recipe import Interpolation
from wbar_training.data.augment import Preparer
from wbar_training.data.decoding import decode
from wbar_training.data.examples import Batch
from wbar_training.evaluate import evaluation_parts, even_slices

IN_MEMORY = 4 * 1024**3  # a split larger than this lives in a file that the system pages in


@dataclass(frozen=True)
class Split:
    """The images and labels of one split.

    images: (N, C, H, W) uint8.
    labels: (N,) int64, outputs of the network; (N, outputs) uint8, 0 and 1 for each (of attributes all 0 where one is not
        known); of regression (N, outputs) float64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "Split":
        """Return the images of these indices, in their order."""
        return Split(self.images[indices.to(self.images.device)], self.labels[indices])

    def parts(self, most: int | None = None) -> list[slice]:
        """Return the batches that the images are evaluated in; see `Examples`."""
        return (
            evaluation_parts(len(self), self.images.shape[-2:]) if most is None else list(even_slices(len(self), most))
        )

    def batch(self, part: slice, prepare: Preparer) -> Batch:
        """Return one of these batches, without augmentation."""
        return Batch(prepare.plain(self.images[part]), self.labels[part])

    def placed(self, device: torch.device) -> "Split":
        """Return the split with its images on a GPU, where they fit; else they are sent a batch at a time, to the same bits."""
        if device.type == "cuda" and self.images.numel() < torch.cuda.mem_get_info()[0] // 4:
            return Split(self.images.to(device), self.labels)
        return self


@dataclass(frozen=True)
class Encoded:
    """A split whose images have many sizes: their encoded files end to end.

    data: uint8; file i goes from offsets[i] to offsets[i + 1].
    channels: 1 or 3, to decode to.
    """

    data: Tensor
    offsets: Tensor
    channels: int

    def decoded(self, index: int) -> Tensor:
        """Return image `index` at its own size, (channels, H, W) uint8."""
        begin, end = self.offsets[index : index + 2].tolist()
        return decode(self.data[begin:end].numpy().tobytes(), self.channels)


@dataclass(frozen=True)
class Packed:
    """The metadata of a packed file.

    height, width: in pixels, the median where there are many sizes.
    mean, std: one number per channel of the training split, for pixels in [0, 1].
    images: their number, by split.
    """

    classes: list[str]
    channels: int
    height: int
    width: int
    mean: list[float]
    std: list[float]
    images: dict[str, int]
    held_out: list[int] | None  # indices into the archive's train/ images, where it had no val/
    warnings: list[str]
    many_sizes: bool = False
    task: Task = "classification"
    class_pixels: list[int] | None = None  # of segmentation: labelled pixels of each class in the training split
    names: list[str] | None = None  # of unlabelled images: those in the archive, in their order
    target_mean: list[float] | None = None  # of regression: of each target in the training split
    target_std: list[float] | None = None
    masks: bool = False  # of detection: every box has a mask

    @classmethod
    def read(cls, path: Path) -> "Packed":
        """Read the metadata of a packed file."""
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata()
            several = len(file.get_slice("train.labels").get_shape()) > 1
        values: dict[str, Any] = json.loads(metadata["wbar.dataset"])
        return cls(**{"task": "multilabel" if several else "classification"} | values)

    def document(self) -> dict[str, Any]:
        """Return the metadata as the file has it: without the tasks that the shape of the labels tells, as it always was."""
        values = asdict(self)
        if self.task in ("classification", "multilabel"):
            del values["task"], values["class_pixels"]
        if self.names is None:
            del values["names"]
        if self.target_mean is None:
            del values["target_mean"], values["target_std"]
        if not self.masks:
            del values["masks"]
        return values


def load_encoded(path: Path, split: str) -> Encoded | None:
    """Return the encoded files of a split whose images have many sizes; None for other splits."""
    with safe_open(path, framework="pt") as file:
        if f"{split}.encoded" not in set(file.keys()):
            return None
        channels = Packed.read(path).channels
        return Encoded(file.get_tensor(f"{split}.encoded"), file.get_tensor(f"{split}.offsets"), channels)


@dataclass(frozen=True)
class Fit:
    """How whole images come to another size, with antialias.

    crop_ratio: of images that are cut out of their centre, the size over the short side that they are resized to.
    """

    crop_ratio: float = 224 / 256
    interpolation: Interpolation = "bilinear"


PLAIN = Fit()


def load_split(
    path: Path,
    split: str,
    image_size: tuple[int, int],
    order: list[int] | None,
    centre: bool = False,
    outputs: int = 0,
    fit: Fit = PLAIN,
) -> Split:
    """Load one split at the job's image size, resized where it differs from the stored one.

    image_size: (height, width) in pixels.
    order: for each class of the dataset, the network's output index; None: the same order.
    centre: resize the short side to size / crop_ratio, then cut the centre out (256 and 224 pixels, say); else both
        sides to the size.
    outputs: of the network, where an image has several labels.
    fit: how images are resized.
    """
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        labels = file.get_tensor(f"{split}.labels")
        if f"{split}.images" in names:
            images = file.get_tensor(f"{split}.images")
            if centre or tuple(images.shape[-2:]) != image_size:
                images = _resized(images, image_size, centre, fit)
        else:
            encoded = load_encoded(path, split)
            assert encoded is not None
            images = _decoded(encoded, image_size, centre, fit)
    if order is not None and labels.dim() == 1:
        labels = torch.tensor(order, dtype=torch.int64)[labels]
    elif order is not None:
        labels = torch.zeros(len(labels), outputs, dtype=labels.dtype).index_copy_(1, torch.tensor(order), labels)
    elif labels.dim() > 1 and labels.shape[1] < outputs:
        labels = torch.nn.functional.pad(labels, (0, outputs - labels.shape[1]))
    return Split(images, labels)


def _allocate(shape: tuple[int, ...]) -> Tensor:
    size = int(np.prod(shape, dtype=np.int64))
    if size <= IN_MEMORY:
        return torch.empty(shape, dtype=torch.uint8)
    # The name is deleted at once, so that the space is freed however the process ends.
    with tempfile.NamedTemporaryFile(prefix="wbar-images-") as file:
        return torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8).view(shape)


def fitted(images: Tensor, size: tuple[int, int], centre: bool, fit: Fit) -> Tensor:
    """Resize images (…, C, H, W) uint8 to `size`."""
    mode = transforms.InterpolationMode(fit.interpolation)
    if not centre:
        squashed: Tensor = transforms.resize(images, list(size), mode, antialias=True)
        return squashed
    height, width = images.shape[-2:]
    scale = max(size[0] / height, size[1] / width) / fit.crop_ratio
    larger = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    cut: Tensor = transforms.center_crop(transforms.resize(images, larger, mode, antialias=True), list(size))
    return cut


def _resized(images: Tensor, size: tuple[int, int], centre: bool, fit: Fit) -> Tensor:
    out = _allocate((len(images), images.shape[1], *size))
    for start in range(0, len(images), 512):
        out[start : start + 512] = fitted(images[start : start + 512], size, centre, fit)
    return out


def _decoded(encoded: Encoded, size: tuple[int, int], centre: bool, fit: Fit) -> Tensor:
    out = _allocate((len(encoded.offsets) - 1, encoded.channels, *size))
    for index in range(len(out)):
        out[index] = fitted(encoded.decoded(index), size, centre, fit)
    return out
