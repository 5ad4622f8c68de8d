"""Images with their labels, as a job's loop and evaluations see them, whatever the labels are."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from wbar_training.data.augment import Preparer


@dataclass(frozen=True)
class Request:
    """A batch to make.

    images: (B,) int64, the indices of its training images.
    purpose, index: name its random draws.
    """

    images: Tensor
    purpose: str
    index: int


@dataclass(frozen=True)
class Batch:
    """Some images as the network takes them, and their labels.

    inputs: (B, C, H, W), normalized, on the device.
    labels: (B, …), as the task has them.
    masks: (B, most, bytes) uint8, of detection with masks: one for each row of the labels, see `data.instance_masks`.
    """

    inputs: Tensor
    labels: Tensor
    masks: Tensor | None = None


class Examples(Protocol):
    """The images of one split, as they are.

    labels: (N, …), one row for each image: what the task's scores need beside the outputs.
    """

    @property
    def labels(self) -> Tensor:
        """The labels of all images."""

    def __len__(self) -> int: ...

    def select(self, indices: Tensor) -> Self:
        """Return the images of these indices, in their order."""

    def parts(self, most: int | None = None) -> Sequence[slice]:
        """Return the batches that the images are evaluated in, in their order; the images of one have one size.

        most: the most images of a batch; None: as many as are fast.
        """

    def batch(self, part: slice, prepare: Preparer) -> Batch:
        """Return one of these batches, without augmentation; its labels are on the CPU."""

    def placed(self, device: torch.device) -> Self:
        """Return the same where training reads it fastest; the bits are the same."""


class Feed(Protocol):
    """The training images, augmented by draws that depend on the job's seed and the request alone."""

    def __len__(self) -> int: ...

    def parts(self, count: int) -> Sequence[slice]:
        """Return the batches that `count` augmented images are evaluated in."""

    def batch(self, request: Request) -> Batch:
        """Make one batch in this process."""

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Batch, Request]]:
        """Yield batch after batch, the next ones made while the last is trained on."""
