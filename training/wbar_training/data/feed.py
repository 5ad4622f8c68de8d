"""From indices of training images to inputs.

Where images have one size, a batch is one gather and one pass; where each image is handled by itself (a JPEG's random
box, a policy's operations), DataLoader workers do it ahead of the training. Every draw is a function of (seed, purpose,
index, place in the batch): the number of workers changes nothing.
"""

import os
import threading
from collections.abc import Iterable, Iterator
from multiprocessing import parent_process
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from wbar.recipe import Augment
from wbar_training.data import crops
from wbar_training.data.augment import FLIPS, POLICIES, RESIZED, Preparer, pad_crop
from wbar_training.data.examples import Batch, Request
from wbar_training.data.packed import Encoded, Split
from wbar_training.draws import key
from wbar_training.evaluate import evaluation_parts
from wbar_training.to_device import to_device


class ImageFeed:
    """The training images of a job. loaders: DataLoader workers for images that are handled one by one; 0: this process."""

    def __init__(self, split: Split, prepare: Preparer, encoded: Encoded | None, loaders: int) -> None:
        self.split, self.prepare, self.loaders = split, prepare, loaders
        augment = prepare.augment
        single = augment in POLICIES or (encoded is not None and augment in RESIZED)
        size = (split.images.shape[-2], split.images.shape[-1])
        self._single = OneByOne(split.images, encoded, augment, prepare.seed, size) if single else None

    def __len__(self) -> int:
        return len(self.split)

    def parts(self, count: int) -> list[slice]:
        """Return the batches that `count` augmented images are evaluated in."""
        return evaluation_parts(count, self.split.images.shape[-2:])

    def batch(self, request: Request) -> Batch:
        """Make one batch in this process."""
        return self._labelled(self.inputs(request), request)

    def _labelled(self, inputs: Tensor, request: Request) -> Batch:
        return Batch(inputs, to_device(self.split.labels[request.images], self.prepare.device))

    def inputs(self, request: Request) -> Tensor:
        """Make the inputs of one batch, (B, C, H, W), in this process."""
        if self._single is None:
            images = self.split.images[to_device(request.images, self.split.images.device)]
            return self.prepare.augmented(images, request.purpose, request.index)
        images = torch.stack([self._single[one] for one in ones(request)])
        return self.prepare.finished(images, request.purpose, request.index)

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Batch, Request]]:
        """Yield batch after batch, the next ones made while the last is trained on."""
        if self._single is None or self.loaders == 0:
            yield from ((self.batch(request), request) for request in requests)
            return
        for images, request in ahead(self._single, requests, self.loaders, self.prepare.device):
            inputs = self.prepare.finished(images, request.purpose, request.index)
            yield self._labelled(inputs, request), request


def ahead(
    dataset: "Dataset[Any]", requests: Iterable[Request], loaders: int, device: torch.device
) -> Iterator[tuple[Any, Request]]:
    """Yield what DataLoader workers make of the images of batch after batch, collated, ahead of their use.

    dataset: makes one image of a `One`.
    """
    asked: list[Request] = []

    def batches() -> Iterator[list[One]]:
        for request in requests:
            asked.append(request)
            yield ones(request)

    # forkserver: this process has threads, which a fork would copy in the middle of their work.
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches(),  # any iterable of lists
        num_workers=loaders,
        multiprocessing_context="forkserver",
        worker_init_fn=_end_with_parent,
        pin_memory=device.type == "cuda",
    )
    for made in loader:
        yield made, asked.pop(0)


def _end_with_parent(_worker: int) -> None:
    """End a loader with its parent, which may be a rank that exits at once or an attempt that is killed.

    torch's own watch looks at the process that forked the loader: the forkserver, which waits for the loader to end.
    """
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class One(NamedTuple):
    """One image's index, and the seed of its draws."""

    image: int
    seed: int


def ones(request: Request) -> list[One]:
    """Return the images of a request, each with a seed."""
    # The key needs the job's seed, which the reader of images adds.
    purpose = f"{request.purpose}/{request.index}"
    return [One(image, key(0, purpose, place)) for place, image in enumerate(request.images.tolist())]


class OneByOne(Dataset[Tensor]):
    """The images, decoded or gathered, cropped and changed one at a time: (C, H, W) uint8."""

    def __init__(
        self, images: Tensor, encoded: Encoded | None, augment: Augment, seed: int, size: tuple[int, int]
    ) -> None:
        self.images = images.cpu() if encoded is None or augment not in RESIZED else None
        self.encoded, self.augment, self.seed, self.size = encoded, augment, seed, size
        self.policy = {"rand_augment": v2.RandAugment(), "trivial_augment": v2.TrivialAugmentWide()}.get(augment)

    def __getitem__(self, one: One) -> Tensor:
        draws = torch.Generator().manual_seed(one.seed ^ self.seed)
        if self.policy is None:
            return self._box(one.image, draws)
        assert self.images is not None
        image = pad_crop(self.images[one.image : one.image + 1], draws, flip=True)[0]
        # torchvision's policies draw from the global generator: it is lent for this image, and given back. Its draws are other
        # ones than the crop's and the mirror's: with those, a mirrored image would always be turned the same way.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key(self.seed, "policy", one.seed))
            changed: Tensor = self.policy(image)
        return changed

    def _box(self, index: int, draws: torch.Generator) -> Tensor:
        assert self.encoded is not None
        image = self.encoded.decoded(index)
        box = crops.boxes(1, image.shape[-2], image.shape[-1], draws)[0].long().tolist()
        cropped: Tensor = functional.resized_crop(image, *box, size=list(self.size), antialias=True)
        if self.augment in FLIPS and bool(torch.rand((), generator=draws) < 0.5):
            cropped = cropped.flip(-1)
        return cropped
