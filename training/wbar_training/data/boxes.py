"""Images with boxes: read with them, fitted into one size, scaled, cropped and mirrored together.

    fit       by min(H/h, W/w), so that the whole image lies in the job's image size
    scale     s ~ U(0.5, 2) beside it, bilinearly with antialias           (`scale_crop_flip`; Ghiasi et al. 2021, jitter)
    crop      of the image size at a uniform place; beyond the image is the mean colour of the training images
    mirror    with probability ½                                           (`flip` does this alone)
    colour    hue, saturation and brightness, see `wbar_training.data.colour`       (`scale_crop_flip_colour`)

A box is cut to the crop, and left out where less than a quarter of its area, or less than a pixel of a side, is in it.
Masks of instances, where the network learns them, are changed as the image is, by their nearest pixels; a box whose mask has
no pixel left is left out, too.
Held-out images are used whole, at their own size: the network resizes what it is given.
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
from wbar_training.data.instance_masks import MaskRuns, filled_bits, of_bits, resized
from wbar_training.data.masks import SCALE, span
from wbar_training.data.packed import Encoded, Packed
from wbar_training.draws import generator
from wbar_training.evaluate import even_slices
from wbar_training.to_device import to_device

COLUMNS = 7  # of a box: its class, x and y of its first corner, of the other one, its area, whether it is a crowd
CLASS, CORNERS, AREA, CROWD = 0, slice(1, 5), 5, 6
NO_BOX = -1.0  # in the column of the class, in rows that only fill up
VISIBLE = 0.25  # of a box's area, to be kept in a crop
MOST_AT_ONCE = 8  # of an evaluation batch: the networks work through them one by one in part
MASK_PIXELS = 2**19  # of an evaluation batch with masks: there are a hundred for each of them


@dataclass(frozen=True)
class BoxSplit:
    """Images with their boxes, as they are.

    stores: that the images lie in, (N, C, H, W) uint8 or encoded.
    rows: (N, 2) int64, the store of each image and its row there.
    sizes: (N, 2) int64, height and width of each image.
    labels: (N, most, 7) float32, the boxes of each image in its pixels, filled up; classes are outputs of the network.
    runs: of each store, the masks of its boxes; empty where the network learns none.
    """

    stores: tuple[Tensor | Encoded, ...]
    rows: Tensor
    sizes: Tensor
    labels: Tensor
    runs: tuple[MaskRuns, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Tensor:
        """Return one image, (C, H, W) uint8."""
        number, row = self.rows[index].tolist()
        store = self.stores[number]
        return store.decoded(row) if isinstance(store, Encoded) else store[row]

    def each_mask(self, index: int) -> Iterator[Tensor]:
        """Yield the masks of one image's boxes, one after another: (H, W) bool."""
        number, row = self.rows[index].tolist()
        height, width = self.sizes[index].tolist()
        yield from self.runs[number].each(row, (height, width))

    def masks(self, index: int) -> Tensor:
        """Return the masks of one image's boxes, (boxes, H, W) bool."""
        number, row = self.rows[index].tolist()
        height, width = self.sizes[index].tolist()
        own: MaskRuns = self.runs[number]
        return own.masks(row, (height, width))

    def select(self, indices: Tensor) -> "BoxSplit":
        """Return the images of these indices, in their order."""
        return replace(self, rows=self.rows[indices], sizes=self.sizes[indices], labels=self.labels[indices])

    def parts(self, most: int | None = None) -> list[slice]:
        """Return the batches that the images are evaluated in: neighbours of one size."""
        ends = [index + 1 for index in range(len(self) - 1) if not self.sizes[index].equal(self.sizes[index + 1])]
        found, begin = list[slice](), 0
        for end in [*ends, len(self)]:
            height, width = self.sizes[begin].tolist()
            slices = even_slices(end - begin, most or at_once((height, width), bool(self.runs)))
            found += [slice(begin + one.start, begin + one.stop) for one in slices]
            begin = end
        return found

    def batch(self, part: slice, prepare: Preparer) -> Batch:
        """Return one of these batches, without augmentation; labels: (B, most, 7)."""
        indices = range(part.start, part.stop)
        images = torch.stack([self.image(index) for index in indices])
        most = self.labels.shape[1]
        masks = torch.stack([filled_bits(self.masks(index), most) for index in indices]) if self.runs else None
        return Batch(prepare.plain(images), self.labels[part], masks)

    def placed(self, device: torch.device) -> "BoxSplit":  # noqa: ARG002  # a crop is made on the host
        """Return the same: each image is fitted by itself, on the host."""
        return self


def at_once(size: tuple[int, int], masks: bool) -> int:
    """Return how many images of this size, (height, width), are evaluated at once."""
    return max(1, min(MOST_AT_ONCE, MASK_PIXELS // (size[0] * size[1]))) if masks else MOST_AT_ONCE


def load_boxes(path: Path, split: str, order: list[int] | None, masks: bool = False) -> BoxSplit:
    """Return one split of a packed file.

    order: for each class of the dataset, the network's output index; None: the same.
    masks: whether the masks of the boxes are read, which must be there.
    """
    channels = Packed.read(path).channels
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(f"{split}.")}  # noqa: SIM118
    store: Tensor | Encoded
    if f"{split}.encoded" in tensors:
        store = Encoded(tensors[f"{split}.encoded"], tensors[f"{split}.offsets"], channels)
    else:
        store = tensors[f"{split}.images"]
    boxes, offsets, sizes = (
        tensors[f"{split}.boxes"].clone(),
        tensors[f"{split}.box_offsets"],
        tensors[f"{split}.sizes"],
    )
    if order is not None:
        boxes[:, CLASS] = torch.tensor(order, dtype=torch.float32)[boxes[:, CLASS].long()]
    counts = offsets.diff()
    labels = _filled(boxes.split(counts.tolist()), int(counts.max()))
    rows = torch.stack([torch.zeros(len(sizes), dtype=torch.int64), torch.arange(len(sizes))], dim=1)
    runs = (MaskRuns(tensors[f"{split}.mask_runs"], tensors[f"{split}.mask_offsets"], offsets),) if masks else ()
    return BoxSplit((store,), rows, sizes.long(), labels, runs)


def joined_boxes(parts: Sequence[BoxSplit]) -> BoxSplit:
    """Return several splits of one dataset as one."""
    rows, before = [], 0
    for part in parts:
        rows.append(part.rows + torch.tensor([before, 0]))
        before += len(part.stores)
    return BoxSplit(
        tuple(store for part in parts for store in part.stores),
        torch.cat(rows),
        torch.cat([part.sizes for part in parts]),
        _filled([one for part in parts for one in part.labels], max(part.labels.shape[1] for part in parts)),
        tuple(runs for part in parts for runs in part.runs),
    )


def _filled(boxes: Sequence[Tensor], most: int) -> Tensor:
    """Return the boxes of each image, filled up to the same number of rows, (N, most, 7)."""
    filled = torch.zeros(len(boxes), max(1, most), COLUMNS)
    filled[:, :, CLASS] = NO_BOX
    for index, own in enumerate(boxes):
        filled[index, : len(own)] = own
    return filled


def targets_of(labels: Tensor, masks: Tensor | None = None, size: tuple[int, int] = (0, 0)) -> list[dict[str, Tensor]]:
    """Return the boxes to learn as a detector takes them; crowds are left out.

    labels: (B, most, 7).
    masks: (B, most, bytes) uint8, as `Batch` has them, of images of this size, (height, width); None: there are none.
    """
    found = []
    for index, boxes in enumerate(labels):
        learned = (boxes[:, CLASS] > 0) & (boxes[:, CROWD] == 0)
        own = boxes[learned]
        target = {"boxes": own[:, CORNERS].contiguous(), "labels": own[:, CLASS].long()}
        if masks is not None:
            target["masks"] = of_bits(masks[index, learned], size).to(torch.uint8)
        found.append(target)
    return found


class BoxFeed:
    """The training images of a detection job and their boxes, brought to one size. loaders: see `ImageFeed`.

    fill: the colour beyond an image, one number per channel of the images, in [0, 1].
    """

    def __init__(
        self, split: BoxSplit, prepare: Preparer, size: tuple[int, int], fill: Sequence[float], loaders: int
    ) -> None:
        self.split, self.prepare, self.size, self.loaders = split, prepare, size, loaders
        self._fitted = FittedImages(split, size, prepare.augment, fill, prepare.seed)

    def __len__(self) -> int:
        return len(self.split)

    def parts(self, count: int) -> list[slice]:
        """Return the batches that `count` augmented images are evaluated in."""
        return list(even_slices(count, at_once(self.size, bool(self.split.runs))))

    def batch(self, request: Request) -> Batch:
        """Make one batch in this process; labels: (B, most, 7), on the device."""
        made = [self._fitted[one] for one in ones(request)]
        return self._finished([torch.stack(parts) for parts in zip(*made, strict=True)], request)

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[Batch, Request]]:
        """Yield batch after batch, the next ones made while the last is trained on."""
        if self.loaders == 0:
            yield from ((self.batch(request), request) for request in requests)
            return
        for made, request in ahead(self._fitted, requests, self.loaders, self.prepare.device):
            yield self._finished(made, request), request

    def _finished(self, made: Sequence[Tensor], request: Request) -> Batch:
        images, boxes, *masks = (to_device(one, self.prepare.device) for one in made)
        if self.prepare.augment == "scale_crop_flip_colour":
            draws = generator(self.prepare.seed, f"{request.purpose}/colour", request.index)
            images = colour.jitter(images.float(), draws)
        return Batch(self.prepare.plain(images), boxes, *masks)


class FittedImages(Dataset[tuple[Tensor, ...]]):
    """Images and their boxes at one size, (C, H, W) uint8 and (most, 7), one at a time; where the network learns them,
    the masks of the boxes as bits, too, (most, bytes).

    size: (height, width) in pixels.
    fill: the colour beyond the image, one number per channel of the images, in [0, 1].
    """

    def __init__(self, split: BoxSplit, size: tuple[int, int], augment: str, fill: Sequence[float], seed: int) -> None:
        self.split, self.size, self.seed = split, size, seed
        self.scales, self.flips = augment.startswith("scale_crop"), augment != "none"
        self.fill = (torch.tensor(fill) * 255).round().to(torch.uint8)

    def __getitem__(self, one: One) -> tuple[Tensor, ...]:
        image, boxes = self.split.image(one.image), self.split.labels[one.image].clone()
        draws = torch.Generator().manual_seed(one.seed ^ self.seed)
        scale, place = 1.0, torch.tensor([0.5, 0.5])
        if self.scales:
            scale = torch.empty((), dtype=torch.float64).uniform_(*SCALE, generator=draws).item()
            place = torch.rand(2, generator=draws)
        image, boxes = self._scaled(image, boxes, scale)
        scaled = [int(side) for side in image.shape[-2:]]
        image, boxes = self._cropped(image, boxes, place)
        mirror = self.flips and bool(torch.rand((), generator=draws) < 0.5)
        masks = self._masks(one.image, scaled, place, mirror) if self.split.runs else None
        if mirror:
            image, boxes = mirrored(image, boxes)
        if masks is None:
            return image, boxes
        boxes[: len(masks)] = _seen(boxes[: len(masks)], masks)
        return image, boxes, filled_bits(masks, len(boxes))

    def _masks(self, index: int, scaled: list[int], place: Tensor, mirror: bool) -> Tensor:
        """Return the masks of an image, (boxes, H, W) bool, changed as it is. scaled: its height and width before the crop."""
        (rows_to, rows), (columns_to, columns) = self._spans(scaled, place)
        found = [torch.zeros(0, *self.size, dtype=torch.bool)]
        for mask in self.split.each_mask(index):
            cropped = torch.zeros(1, *self.size, dtype=torch.bool)
            cropped[0, rows_to, columns_to] = resized(mask, scaled)[rows, columns]
            found.append(cropped)
        masks = torch.cat(found)
        return masks.flip(-1) if mirror else masks

    def _scaled(self, image: Tensor, boxes: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        height, width = image.shape[-2:]
        scale *= min(self.size[0] / height, self.size[1] / width)
        new = [max(1, round(height * scale)), max(1, round(width * scale))]
        if new != [height, width]:
            image = functional.resize(image, new, InterpolationMode.BILINEAR, antialias=True)
            across, down = new[1] / width, new[0] / height
            boxes[:, CORNERS] *= torch.tensor([across, down, across, down])
            boxes[:, AREA] *= across * down
        return image, boxes

    def _cropped(self, image: Tensor, boxes: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Cut the crop out, or lay the image into it, or both. place: (2,) in [0, 1], of top and left in their ranges."""
        cropped = self.fill[:, None, None].expand(-1, *self.size).clone()
        (rows_to, rows), (columns_to, columns) = self._spans(image.shape[-2:], place)
        cropped[:, rows_to, columns_to] = image[:, rows, columns]
        left, top = columns_to.start - columns.start, rows_to.start - rows.start
        moved = boxes[:, CORNERS] + torch.tensor([left, top, left, top])
        return cropped, cut_boxes(boxes, moved, self.size)

    def _spans(self, lengths: Sequence[int], place: Tensor) -> list[tuple[slice, slice]]:
        """Return, of rows and of columns, those of the crop and those of the image that come to them."""
        return [span(lengths[i], self.size[i], at) for i, at in enumerate(place.tolist())]


def _seen(boxes: Tensor, masks: Tensor) -> Tensor:
    """Return the boxes, (n, 7), with those left out whose masks, (n, H, W), have no pixel; crowds stay."""
    gone = ~masks.flatten(1).any(dim=1) & (boxes[:, CROWD] == 0)
    found = boxes.clone()
    found[gone] = 0
    found[gone, CLASS] = NO_BOX
    return found


def cut_boxes(boxes: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes at new corners, cut to an image of `size`; rows of those that are left out only fill up.

    boxes: (n, 7). corners: (n, 4).
    """
    height, width = size
    cut = torch.stack([corners[:, i].clamp(0, (width, height)[i % 2]) for i in range(4)], dim=1)
    sides, whole = cut[:, 2:] - cut[:, :2], (corners[:, 2:] - corners[:, :2]).prod(dim=1)
    share = sides.prod(dim=1) / whole.clamp_min(1e-6)
    kept = (boxes[:, CLASS] != NO_BOX) & (share >= VISIBLE) & (sides >= 1).all(dim=1)
    found = boxes.clone()
    found[:, CORNERS], found[:, AREA] = cut, boxes[:, AREA] * share.clamp_max(1)
    found[~kept] = 0
    found[~kept, CLASS] = NO_BOX
    return found


def mirrored(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return image and boxes, (C, H, W) and (n, 7), with left and right exchanged."""
    width, turned, known = image.shape[-1], boxes.clone(), boxes[:, CLASS] != NO_BOX
    turned[:, 1], turned[:, 3] = width - boxes[:, 3], width - boxes[:, 1]
    turned[~known] = boxes[~known]
    return image.flip(-1), turned
