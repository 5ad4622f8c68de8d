"""Images with a class for every pixel: read with their masks, scaled, cropped and mirrored together.

    scale      s ~ U(0.5, 2), of the image's own size; the image bilinearly with antialias, the mask by its nearest pixel
    crop       of the job's image size at a uniform place; beyond the image its mean colour, and void in the mask
    mirror     with probability ½
    colour     hue, saturation and brightness, see `wbar_training.data.colour`        (`scale_crop_flip_colour`)

Held-out images are used at their own size, whatever that is. A mask is stored as class indices, 255 where it is void:
those pixels count in no loss and no score.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from wbar_training.data import colour
from wbar_training.data.augment import Preparer
from wbar_training.data.examples import Batch, Request
from wbar_training.data.feed import One, ahead, ones
from wbar_training.data.packed import Encoded, Packed
from wbar_training.draws import generator
from wbar_training.evaluate import even_slices
from wbar_training.to_device import to_device

VOID = 255
SCALE = (0.5, 2.0)
DENSE_PIXELS = 2**21  # of an evaluation batch: there is a class for each of them, and a probability for each class
MOST_AT_ONCE = 64


@dataclass(frozen=True)
class MaskStore:
    """The images and masks of one split of a packed file, of one size or of many.

    images: (N, C, H, W) uint8, or encoded.
    masks: (N, H, W) uint8, or encoded.
    """

    images: Tensor | Encoded
    masks: Tensor | Encoded

    def pair(self, row: int) -> tuple[Tensor, Tensor]:
        """Return image and mask, (C, H, W) and (H, W) uint8."""
        image = self.images.decoded(row) if isinstance(self.images, Encoded) else self.images[row]
        mask = self.masks.decoded(row)[0] if isinstance(self.masks, Encoded) else self.masks[row]
        return image, mask


@dataclass(frozen=True)
class MaskSplit:
    """Images with their masks, as they are.

    stores: that they lie in.
    rows: (N, 2) int64, the store of each image and its row there.
    sizes: (N, 2) int64, height and width of each image.
    classes: (256,) uint8, what becomes of each value of a stored mask: the index of an output, or VOID.
    labels: (N, classes) uint8, the classes that each image has.
    """

    stores: tuple[MaskStore, ...]
    rows: Tensor
    sizes: Tensor
    classes: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """Return image and mask, (C, H, W) and (H, W) uint8; the mask's values are outputs of the network, or VOID."""
        store, row = self.rows[index].tolist()
        image, mask = self.stores[store].pair(row)
        return image, self.classes[mask.long()]

    def select(self, indices: Tensor) -> "MaskSplit":
        """Return the images of these indices, in their order."""
        return replace(self, rows=self.rows[indices], sizes=self.sizes[indices], labels=self.labels[indices])

    def parts(self, most: int | None = None) -> list[slice]:
        """Return the batches that the images are evaluated in: neighbours of one size."""
        ends = [
            index + 1 for index in range(len(self) - 1) if not torch.equal(self.sizes[index], self.sizes[index + 1])
        ]
        found, begin = list[slice](), 0
        for end in [*ends, len(self)]:
            few = min(most or MOST_AT_ONCE, _at_once(self.sizes[begin].tolist()))
            found += [slice(begin + one.start, begin + one.stop) for one in even_slices(end - begin, few)]
            begin = end
        return found

    def batch(self, part: slice, prepare: Preparer) -> Batch:
        """Return one of these batches, without augmentation; labels: (B, H, W) int64."""
        pairs = [self.pair(index) for index in range(part.start, part.stop)]
        inputs = prepare.plain(torch.stack([image for image, _ in pairs]))
        return Batch(inputs, torch.stack([mask for _, mask in pairs]).long())

    def placed(self, device: torch.device) -> "MaskSplit":  # noqa: ARG002  # a crop is made on the host
        """Return the same: each image is cropped by itself, on the host."""
        return self


def _at_once(size: Sequence[int]) -> int:
    return max(1, min(MOST_AT_ONCE, DENSE_PIXELS // (size[0] * size[1])))


def load_masks(path: Path, split: str, order: list[int] | None, outputs: int) -> MaskSplit:
    """Return one split of a packed file.

    order: for each class of the dataset, the network's output index; None: the same order.
    outputs: classes that the network tells apart.
    """
    channels = Packed.read(path).channels
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(f"{split}.")}  # noqa: SIM118
    present, masks = tensors[f"{split}.labels"], tensors[f"{split}.masks"]
    if f"{split}.encoded" in tensors:
        store = MaskStore(
            Encoded(tensors[f"{split}.encoded"], tensors[f"{split}.offsets"], channels),
            Encoded(masks, tensors[f"{split}.mask_offsets"], 1),
        )
    else:
        store = MaskStore(tensors[f"{split}.images"], masks)
    count = present.shape[1]
    chosen = torch.tensor(list(range(count)) if order is None else order)
    classes = torch.full((256,), VOID, dtype=torch.uint8)
    classes[:count] = chosen.to(torch.uint8)
    labels = torch.zeros(len(present), outputs, dtype=torch.uint8).index_copy_(1, chosen, present)
    rows = torch.stack([torch.zeros(len(present), dtype=torch.int64), torch.arange(len(present))], dim=1)
    return MaskSplit((store,), rows, tensors[f"{split}.sizes"].long(), classes, labels)


def joined_masks(parts: Sequence[MaskSplit]) -> MaskSplit:
    """Return several splits of one dataset as one."""
    rows, before = [], 0
    for part in parts:
        rows.append(part.rows + torch.tensor([before, 0]))
        before += len(part.stores)
    return MaskSplit(
        tuple(store for part in parts for store in part.stores),
        torch.cat(rows),
        torch.cat([part.sizes for part in parts]),
        parts[0].classes,
        torch.cat([part.labels for part in parts]),
    )


class MaskFeed:
    """The training images of a segmentation job and their masks, cut to one size. loaders: see `ImageFeed`."""

    def __init__(self, split: MaskSplit, prepare: Preparer, size: tuple[int, int], loaders: int) -> None:
        self.split, self.prepare, self.size, self.loaders = split, prepare, size, loaders
        self._crops = RandomCrops(split, size, prepare.augment != "none", prepare.mean_colour, prepare.seed)

    def __len__(self) -> int:
        return len(self.split)

    def parts(self, count: int) -> list[slice]:
        """Return the batches that `count` augmented images are evaluated in."""
        return list(even_slices(count, _at_once(self.size)))

    def batch(self, request: Request) -> Batch:
        """Make one batch in this process; labels: (B, H, W) int64, on the device."""
        pairs = [self._crops[one] for one in ones(request)]
        return self._finished(
            torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs]), request
        )

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Batch, Request]]:
        """Yield batch after batch, the next ones made while the last is trained on."""
        if self.loaders == 0:
            yield from ((self.batch(request), request) for request in requests)
            return
        for (images, masks), request in ahead(self._crops, requests, self.loaders, self.prepare.device):
            yield self._finished(images, masks, request), request

    def _finished(self, images: Tensor, masks: Tensor, request: Request) -> Batch:
        images = to_device(images, self.prepare.device)
        if self.prepare.augment == "scale_crop_flip_colour":
            draws = generator(self.prepare.seed, f"{request.purpose}/colour", request.index)
            images = colour.jitter(images.float(), draws)
        return Batch(self.prepare.plain(images), to_device(masks, self.prepare.device).long())


class RandomCrops(Dataset[tuple[Tensor, Tensor]]):
    """Crops of images and masks, (C, h, w) and (h, w) uint8, one at a time.

    size: (height, width) in pixels.
    random: else the centre at the image's own scale, for all time the same.
    fill: the colour beyond the image, one number per channel of the network, in 0…255.
    """

    def __init__(self, split: MaskSplit, size: tuple[int, int], random: bool, fill: Sequence[float], seed: int) -> None:
        self.split, self.size, self.random, self.seed = split, size, random, seed
        self.fill = torch.tensor(fill).round().to(torch.uint8)

    def __getitem__(self, one: One) -> tuple[Tensor, Tensor]:
        image, mask = self.split.pair(one.image)
        if not self.random:
            return self._crop(image, mask, torch.tensor([0.5, 0.5]))
        draws = torch.Generator().manual_seed(one.seed ^ self.seed)
        scale = torch.empty((), dtype=torch.float64).uniform_(*SCALE, generator=draws).item()
        place = torch.rand(2, generator=draws)
        size = [max(1, round(side * scale)) for side in mask.shape]
        image = functional.resize(image, size, InterpolationMode.BILINEAR, antialias=True)
        mask = functional.resize(mask[None], size, InterpolationMode.NEAREST_EXACT)[0]
        image, mask = self._crop(image, mask, place)
        return (image.flip(-1), mask.flip(-1)) if bool(torch.rand((), generator=draws) < 0.5) else (image, mask)

    def _crop(self, image: Tensor, mask: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Cut the crop out, or lay the image into it, or both. place: (2,) in [0, 1], of top and left in their ranges."""
        fill = self.fill if len(self.fill) == len(image) else self.fill[:1].expand(len(image))
        cropped = fill[:, None, None].expand(-1, *self.size).clone()
        labels = torch.full(self.size, VOID, dtype=torch.uint8)
        spans = [
            span(length, wanted, at) for length, wanted, at in zip(mask.shape, self.size, place.tolist(), strict=True)
        ]
        (rows_to, rows), (columns_to, columns) = spans
        cropped[:, rows_to, columns_to] = image[:, rows, columns]
        labels[rows_to, columns_to] = mask[rows, columns]
        return cropped, labels


def span(length: int, wanted: int, place: float) -> tuple[slice, slice]:
    """Return the pixels of the crop, and those of the image that come to them, along one axis."""
    room = abs(length - wanted)
    begin = min(int(place * (room + 1)), room)
    count = min(length, wanted)
    inside, whole = slice(begin, begin + count), slice(0, count)
    return (whole, inside) if length > wanted else (inside, whole)
