"""Packed datasets of segmentation: images, a mask for each, and the names of the classes.

    train/images/a.jpg   train/masks/a.png   val/images/…   val/masks/…   classes.txt

or Pascal VOC's own JPEGImages, SegmentationClass and ImageSets/Segmentation (see `voc_folders`), whose classes are VOC's 21
where there is no classes.txt; also below one common folder, and with folders below `images/` and `masks/` alike. A mask is a
PNG of its image's size, grey or with a palette, whose values are labels. `classes.txt` names one class a line. The labels in
their order, from 0, are its lines; the void label is none of them, and pixels that have it count nowhere.
"""

import io
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wbar.datasets import VOID_LABEL
from wbar.errors import BrokenImage, ContentTooLarge, InvalidArchive, NoImages, TooFewClasses
from wbar_averaging.quoting import quoted, reason
from wbar_training.data.decoding import Inspected
from wbar_training.data.masks import VOID
from wbar_training.data.packed import Packed
from wbar_training.uploads.dataset_archives import (
    IMAGES,
    SPLITS,
    Read,
    common_shape,
    image_tensors,
    joined_files,
    sampled_pixels,
    write_packed,
)
from wbar_training.uploads.held_out import divided
from wbar_training.uploads.image_checks import check_png, inspected, warnings_about
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.member_names import check_class_names, is_hidden
from wbar_training.uploads.voc_folders import CLASSES, MASKS, Listed, contents, voc_folders

NAMES = "classes.txt"
FOLDERS = ("images", "masks")
MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # of Pillow, with one number for each pixel
LAYOUT = (
    f"a segmentation archive is train/images/a.jpg, train/masks/a.png, the same for val/, and {NAMES} with a name a line; or "
    "Pascal VOC's own JPEGImages, SegmentationClass and ImageSets/Segmentation"
)


@dataclass(frozen=True)
class Pair:
    """An image file and its mask's, still encoded, with their names."""

    split: str
    image: tuple[str, bytes]
    mask: tuple[str, bytes]


def pack_masks(read: Read, out: Path, limits: UploadLimits, void_label: int = VOID_LABEL) -> Packed:
    """Pack the members that `read` yields. Raises a class of wbar.errors.Rejected, with the file's name.

    void_label: the value of pixels that belong to no class.
    """
    voc = voc_folders(read, MASKS, limits, lambda name: _place(name) is not None)
    pairs, classes = _paired(read(_wanted), limits) if voc is None else _of_voc(voc[0], read, limits)
    images = inspected([pair.image for pair in pairs], limits)
    table = _table(len(classes), void_label)
    masks = [
        _mask(pair, image, table, len(classes), void_label, limits) for pair, image in zip(pairs, images, strict=True)
    ]
    warnings = warnings_about([pair.image[0] for pair in pairs], images)
    warnings += voc[1] if voc else []
    division = divided([one.split for one in pairs])
    train, val = division.train, division.val
    warnings += division.warnings()
    shapes = [(image.height, image.width) for image in images]
    channels = 1 if all(image.grey for image in images) else 3
    uniform, tensors = len(set(shapes)) == 1, dict[str, Tensor]()
    for split, chosen in (("train", train), ("val", val)):
        own = [masks[index] for index in chosen]
        tensors |= image_tensors(split, [pairs[index].image[1] for index in chosen], channels, uniform)
        tensors |= _mask_tensors(split, own, len(classes), uniform)
    pixels = sampled_pixels([pairs[index].image[1] for index in train], channels)
    counts = sum((np.bincount(masks[index].ravel(), minlength=256) for index in train), np.zeros(256, np.int64))
    return write_packed(
        out, tensors, classes, pixels, division.held_out, warnings, (channels, *common_shape(shapes)),
        task="segmentation", class_pixels=counts[: len(classes)].tolist(),
    )  # fmt: skip


def _wanted(name: str) -> bool:
    return _place(name) is not None or _is_names(name)


def _is_names(name: str) -> bool:
    path = PurePosixPath(name)
    return path.name == NAMES and len(path.parts) <= 2 and not is_hidden(name)


def _place(name: str) -> tuple[str, str, str] | None:
    """Return split, `images` or `masks`, and the path below without its suffix; None for other files."""
    parts = name.split("/")
    at = next((index for index, part in enumerate(parts[:-2]) if part in SPLITS), None)
    if at is None or at > 1 or parts[at + 1] not in FOLDERS or is_hidden(name):
        return None
    path = PurePosixPath(*parts[at + 2 :])
    known = (
        IMAGES if parts[at + 1] == "images" else IMAGES | {".tif", ".tiff", ".bmp"}
    )  # masks of others are refused by name
    return (parts[at], parts[at + 1], str(path.with_suffix(""))) if path.suffix.lower() in known else None


def _paired(members: Iterator[tuple[str, bytes]], limits: UploadLimits) -> tuple[list[Pair], list[str]]:
    found: dict[str, dict[tuple[str, str], tuple[str, bytes]]] = {folder: {} for folder in FOLDERS}
    names: bytes | None = None
    for name, data in members:
        place = _place(name)
        if place is None:
            if names is not None:
                raise InvalidArchive(f"{NAMES} is there twice")
            names = data
            continue
        split, folder, stem = place
        if (split, stem) in found[folder]:
            other = found[folder][split, stem][0]
            raise InvalidArchive(f"{quoted(name)} and {quoted(other)} have one name: which is the one of the pair?")
        if folder == "masks" and PurePosixPath(name).suffix.lower() != ".png":
            raise InvalidArchive(f"{quoted(name)}: a mask is a PNG, which keeps every label as it is")
        found[folder][split, stem] = (name, data)
    images, masks = found["images"], found["masks"]
    _check_partners(images, masks, "images have no mask", "masks")
    _check_partners(masks, images, "masks have no image", "images")
    if sum(split == "train" for split, _ in images) < 2:
        raise NoImages(f"there are fewer than two images in train/images/: {LAYOUT}")
    pairs = [Pair(place[0], images[place], masks[place]) for place in sorted(images)]
    return pairs, _class_names(names, limits)


def _of_voc(listed: Sequence[Listed], read: Read, limits: UploadLimits) -> tuple[list[Pair], list[str]]:
    """Return the same of VOC's own folders."""
    members = contents(read, {one.image for one in listed} | {one.labels for one in listed})
    pairs = [
        Pair(one.split, (one.image, members[one.image]), (one.labels, members[one.labels]))
        for one in sorted(listed, key=lambda one: (one.split, one.name))
    ]
    names = list(read(lambda name: PurePosixPath(name).name == NAMES and not is_hidden(name)))
    if len(names) > 1:
        raise InvalidArchive(f"{NAMES} is there twice")
    return pairs, _class_names(names[0][1], limits) if names else list(CLASSES)


def _check_partners(
    some: dict[tuple[str, str], tuple[str, bytes]], others: Container[tuple[str, str]], what: str, folder: str
) -> None:
    alone = sorted(place for place in some if place not in others)
    if alone:
        split, stem = alone[0]
        expected = f"{split}/{folder}/{stem}.{'png' if folder == 'masks' else 'jpg'}"
        raise InvalidArchive(
            f"{len(alone)} {what}, the first {quoted(some[alone[0]][0])}: {quoted(expected)} is expected beside it"
        )


def _class_names(data: bytes | None, limits: UploadLimits) -> list[str]:
    if data is None:
        raise InvalidArchive(f"there is no {NAMES}: {LAYOUT}")
    if len(data) > limits.header_bytes:
        raise ContentTooLarge(f"{NAMES} has {len(data)} bytes, more than the limit of {limits.header_bytes}")
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InvalidArchive(f"{NAMES} cannot be read as UTF-8: {reason(error)}") from None
    names = [line for line in lines if line]
    if len(names) < 2:
        raise TooFewClasses(f"{NAMES} names {len(names)} classes: two or more, one a line")
    if len(names) > VOID:
        raise InvalidArchive(f"{NAMES} names {len(names)} classes: at most {VOID}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidArchive(f"{NAMES} names {quoted(twice)} twice")
    check_class_names(names, f"{NAMES}: the class")
    return names


# Masks.


def _table(classes: int, void_label: int) -> NDArray[np.int64]:
    """Return what becomes of each label, (65536,): the index of its class, VOID, or −1 where it is none."""
    table = np.full(65536, -1, np.int64)
    labels = [label for label in range(classes + 1) if label != void_label][:classes]
    table[labels] = np.arange(classes)
    table[void_label] = VOID
    return table


def _mask(
    pair: Pair, image: Inspected, table: NDArray[np.int64], classes: int, void_label: int, limits: UploadLimits
) -> NDArray[np.uint8]:
    """Return a mask's class indices, (H, W), VOID where it is void, after checking it."""
    name, values = pair.mask[0], _values(*pair.mask, limits)
    height, width = values.shape
    if (height, width) != (image.height, image.width):
        turned = ", turned as its EXIF orientation says" if image.turned else ""
        raise InvalidArchive(
            f"{quoted(name)} has {width}x{height} pixels, and its image {quoted(pair.image[0])} {image.width}x{image.height}"
            f"{turned}: they must be the same"
        )
    known = table[np.clip(values, 0, 65535)]
    wrong = np.unique(values[(known < 0) | (values < 0) | (values > 65535)])
    if len(wrong):
        raise InvalidArchive(
            f"{quoted(name)} has the labels {wrong[:10].tolist()}, and {NAMES} names {classes} classes: the labels are "
            f"{_labels(classes, void_label)}, and {void_label} for void (`void_label`)"
        )
    if bool((known == VOID).all()):
        raise InvalidArchive(f"{quoted(name)} is void everywhere: it says nothing of its image. Leave the pair out")
    return known.astype(np.uint8)


def _labels(classes: int, void_label: int) -> str:
    if void_label > classes or void_label == classes:
        return f"0 to {classes - 1}"
    return f"0 to {classes} without {void_label}" if void_label else f"1 to {classes}"


def _values(name: str, data: bytes, limits: UploadLimits) -> NDArray[np.int64]:
    try:
        check_png(data)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > limits.pixels:
                raise ContentTooLarge(
                    f"{quoted(name)} has {image.width}x{image.height} pixels, over the limit of {limits.pixels}"
                )
            if image.mode not in MODES:
                raise InvalidArchive(
                    f"{quoted(name)} has colours (mode {image.mode}): a mask has one number for each pixel, its label. "
                    "Save it as a grey PNG, or with a palette"
                )
            image.load()
            return np.asarray(image).astype(np.int64)
    except (ContentTooLarge, InvalidArchive, MemoryError):
        raise
    except Exception as error:
        # A decoder raises many types for a damaged file; all mean that this mask is broken.
        raise BrokenImage(f"{quoted(name)} cannot be decoded: {reason(error)}") from None


def _mask_tensors(split: str, masks: Sequence[NDArray[np.uint8]], classes: int, uniform: bool) -> dict[str, Tensor]:
    present = np.stack([np.bincount(mask.ravel(), minlength=256)[:classes] > 0 for mask in masks])
    tensors = {
        f"{split}.labels": torch.from_numpy(present.astype(np.uint8)),
        f"{split}.sizes": torch.tensor([mask.shape for mask in masks], dtype=torch.int32),
    }
    if uniform:
        return tensors | {f"{split}.masks": torch.from_numpy(np.stack(masks))}
    data, offsets = joined_files([_png(mask) for mask in masks])
    return tensors | {f"{split}.masks": data, f"{split}.mask_offsets": offsets}


def _png(mask: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()
