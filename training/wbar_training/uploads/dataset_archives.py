"""Packed dataset files of archives, folders and built-in sets, after every image was decoded once.

Expected layout: `train/<class>/*.{jpg,jpeg,png,webp}` and `val/<class>/…`, also below one common folder; for images
with several labels `train/…`, `val/…` and `labels.csv`. Where there is no `val/`, a stratified 20 % of `train/` is held
out with a fixed seed, and the indices are stored with the dataset.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from wbar.catalog import BUILTINS
from wbar.datasets import Task
from wbar.errors import InvalidArchive, NoImages, TooFewClasses, UnknownSource
from wbar_averaging import write_safetensors
from wbar_averaging.quoting import quoted, shown
from wbar_training.data.decoding import decode
from wbar_training.data.packed import Packed
from wbar_training.uploads.archives import Wanted, archive_members, folder_members
from wbar_training.uploads.attribute_table import AttributeTable, warnings_about_attributes
from wbar_training.uploads.builtin_images import digits, fashion
from wbar_training.uploads.held_out import HELD_OUT, HELD_OUT_SEED, SHARE, divided, stratified
from wbar_training.uploads.image_checks import inspected, warnings_about
from wbar_training.uploads.label_table import LabelTable
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.member_names import check_class_names, is_hidden
from wbar_training.uploads.target_table import scale_of, warnings_about_targets

IMAGES = {".jpg", ".jpeg", ".png", ".webp"}
SPLITS = ("train", "val")
Read = Callable[[Wanted], Iterator[tuple[str, bytes]]]  # yields name and content of the wanted members


@dataclass(frozen=True)
class Item:
    """One image file of the archive, still encoded.

    label: its class; where a table has the labels, its path there.
    """

    split: str
    label: str
    name: str
    data: bytes


def pack_archive(path: Path, out: Path, limits: UploadLimits, multilabel: bool = False) -> Packed:
    """Pack a zip, tar, tar.gz or tar.zst (the content decides). Raises a class of wbar.errors.Rejected.

    multilabel: the labels are those of `labels.csv` (see `wbar_training.uploads.label_table`), not the folders' names.
    """
    return pack_images(
        lambda wanted: archive_members(path, limits, wanted), out, limits, _label_table(limits, multilabel)
    )


def pack_folder(folder: Path, out: Path, limits: UploadLimits, multilabel: bool = False) -> Packed:
    """Pack a folder alike; it may hold no links."""
    return pack_images(
        lambda wanted: folder_members(folder, limits, wanted), out, limits, _label_table(limits, multilabel)
    )


def _label_table(limits: UploadLimits, multilabel: bool) -> LabelTable | None:
    return LabelTable(limits.header_bytes) if multilabel else None


def pack_images(read: Read, out: Path, limits: UploadLimits, table: LabelTable | None) -> Packed:
    """Pack images whose labels are their folders' names or, where there is one, in a table."""
    if table is None:
        members = read(lambda name: _image_path(name, 2) is not None)
        return _pack_items(_items(members, 2), out, limits, None)
    members = read(lambda name: _image_path(name, 1) is not None or table.takes(name))
    return _pack_items(_items(table.taken_from(members), 1), out, limits, table)


def pack_builtin(name: str, out: Path, max_train_images: int | None) -> Packed:
    """Pack `digits` (scikit-learn's 1,797 scans) or `fashion-mnist` (official test set as `val`).

    max_train_images: keep this many training images, stratified; None: all.

    Raises UnknownSource, or SourceUnavailable where the images are not there.
    """
    if name not in BUILTINS:
        raise UnknownSource(f"builtin:{name} does not exist; there are {', '.join(f'builtin:{n}' for n in BUILTINS)}")
    if name == "digits":
        images, labels = digits()
        held_out = stratified(labels.tolist())
        drawn = set(held_out)
        kept = [index for index in range(len(labels)) if index not in drawn]
        splits = {"train": (images[kept], labels[kept]), "val": (images[held_out], labels[held_out])}
    else:
        splits = {"train": fashion("train"), "val": fashion("t10k")}
    if max_train_images is not None and max_train_images < len(splits["train"][1]):
        images, labels = splits["train"]
        keep = stratified(labels.tolist(), max_train_images / len(labels))
        splits["train"] = (images[keep], labels[keep])
    tensors: dict[str, Tensor] = {}
    for split, (images, labels) in splits.items():
        tensors[f"{split}.images"], tensors[f"{split}.labels"] = images, labels
    return write_packed(out, tensors, list(BUILTINS[name].classes), splits["train"][0], None, [])


# Reading the source.


def _image_path(name: str, depth: int) -> list[str] | None:
    """Return an image's path from `train` or `val` on; None for other files, hidden ones and those of a system.

    depth: 2 for <split>/<class>/…, 1 for <split>/….
    """
    parts = name.split("/")
    at = next((index for index, part in enumerate(parts[:-depth]) if part in SPLITS), None)
    suffix = PurePosixPath(parts[-1]).suffix.lower()
    return None if at is None or at > 1 or suffix not in IMAGES or is_hidden(name) else parts[at:]


def _items(members: Iterator[tuple[str, bytes]], depth: int) -> Iterator[Item]:
    for name, data in members:
        path = _image_path(name, depth)
        assert path is not None
        yield Item(split=path[0], label=path[1] if depth == 2 else "/".join(path), name=name, data=data)


# Packing.


def _pack_items(items: Iterator[Item], out: Path, limits: UploadLimits, table: LabelTable | None) -> Packed:
    kept = sorted(items, key=lambda item: item.name)
    classes = _classes(kept, table)
    images = inspected([(item.name, item.data) for item in kept], limits)
    shapes = [(image.height, image.width) for image in images]
    channels = 1 if all(image.grey for image in images) else 3
    warnings = warnings_about([item.name for item in kept], images)
    division = divided([item.split for item in kept], lambda train: _held_out([kept[i].label for i in train], table))
    train, val = ([kept[index] for index in indices] for indices in (division.train, division.val))
    how, wanted = SHARE if table else f"{SHARE} of each class", round(HELD_OUT * len(kept))
    if isinstance(table, AttributeTable) and len(val) < wanted:
        how = f"{SHARE} are {wanted}, and every category keeps an image in train/: add a val/ for numbers to go by"
    warnings += division.warnings(how)
    height, width = common_shape(shapes)
    uniform = len(set(shapes)) == 1
    tensors: dict[str, Tensor] = {}
    for split, items_of_split in (("train", train), ("val", val)):
        names = [item.label for item in items_of_split]
        tensors[f"{split}.labels"] = (
            table.labels(names) if table else torch.tensor([classes.index(name) for name in names])
        )
        tensors |= image_tensors(split, [item.data for item in items_of_split], channels, uniform)
    pixels = tensors["train.images"] if uniform else sampled_pixels([item.data for item in train], channels)
    task = table.task if table else None
    if task == "regression":
        warnings += warnings_about_targets(classes, tensors["train.labels"], tensors["val.labels"])
    elif task == "attributes":
        warnings += warnings_about_attributes(classes, tensors["val.labels"])
    return write_packed(out, tensors, classes, pixels, division.held_out, warnings, (channels, height, width), task)


def _held_out(labels: list[str], table: LabelTable | None) -> list[int]:
    """Return the indices of the training images that are held out. labels: see `Item`."""
    if isinstance(table, AttributeTable):
        return table.held_out(labels, HELD_OUT, HELD_OUT_SEED)
    return stratified(["" if table else label for label in labels])


def _classes(items: list[Item], table: LabelTable | None) -> list[str]:
    """Return the names of the classes, after checking them."""
    if table is None:
        classes = sorted({item.label for item in items if item.split == "train"})
        check_class_names(sorted({item.label for item in items}), "the folder")
        _check_classes(items, classes)
        return classes
    table.read()
    if sum(item.split == "train" for item in items) < 2:
        raise NoImages(f"no two images were found in train/: {table.layout}")
    table.check_used({item.label for item in items})
    return table.classes


def _check_classes(items: list[Item], classes: list[str]) -> None:
    counts = Counter(item.label for item in items if item.split == "train")
    if not counts:
        raise NoImages(
            "no images were found in train/<class>/: the layout is train/<class>/*.{jpg,png,webp} and, if you have "
            "held-out images, val/<class>/…"
        )
    if classes == ["images", "masks"]:
        raise InvalidArchive(
            "train/ has the folders images and masks, which are no classes: upload images with masks as task=segmentation"
        )
    if len(classes) < 2:
        raise TooFewClasses(f"train/ has a single class, {quoted(classes[0])}: a classifier needs at least two")
    small = [f"{shown(label)}: {count}" for label, count in sorted(counts.items()) if count < 2]
    if small:
        raise TooFewClasses(f"these classes have a single image in train/: {', '.join(small[:20])}; two are needed")
    unknown = sorted({item.label for item in items if item.split == "val"} - set(classes))
    if unknown:
        raise InvalidArchive(f"val/ has classes that train/ does not: [{', '.join(map(quoted, unknown[:20]))}]")


def image_tensors(split: str, files: Sequence[bytes], channels: int, uniform: bool) -> dict[str, Tensor]:
    """Return the images of a split as a packed file has them: decoded where all have one size, else as they are."""
    if uniform:
        return {f"{split}.images": torch.stack([decode(data, channels) for data in files])}
    data, offsets = joined_files(files)
    return {f"{split}.encoded": data, f"{split}.offsets": offsets}


def joined_files(files: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """Return files end to end, uint8, and where each begins and the last ends, int64."""
    joined = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8)
    return joined, torch.tensor([0, *np.cumsum([len(data) for data in files])])


def sampled_pixels(files: Sequence[bytes], channels: int) -> Tensor:
    """Return the pixels of about 2,000 images, evenly spread, (channels, pixels) uint8."""
    sample = [decode(data, channels) for data in files[:: max(1, len(files) // 2000)]]
    return torch.cat([image.reshape(channels, -1) for image in sample], dim=1)


def common_shape(shapes: list[tuple[int, int]]) -> tuple[int, int]:
    """Return height and width, the medians where there are many."""
    return int(np.median([height for height, _ in shapes])), int(np.median([width for _, width in shapes]))


def write_packed(
    out: Path,
    tensors: dict[str, Tensor],
    classes: list[str],
    pixels: Tensor,
    held_out: list[int] | None,
    warnings: list[str],
    shape: tuple[int, int, int] | None = None,
    task: Task | None = None,
    class_pixels: list[int] | None = None,
    names: list[str] | None = None,
    masks: bool = False,
) -> Packed:
    """Write a packed file, and return its metadata.

    tensors: by name, as the file holds them.
    pixels: (N, C, H, W) or (C, pixels) uint8 of the training split, for the statistics.
    shape: channels, height and width; None: those of `pixels`.
    task: None: what the shape of the labels says, a class or several labels.
    class_pixels, names, masks: see `Packed`.
    """
    channels, height, width = shape or tuple(pixels.shape[1:])
    by_channel = pixels if pixels.dim() == 2 else pixels.transpose(0, 1).flatten(1)
    mean, std = [], []
    for values in by_channel:
        # Exact from the histogram of the 256 values, whatever the number of pixels.
        counts = torch.bincount(values.flatten(), minlength=256).double()
        levels = torch.arange(256, dtype=torch.float64) / 255
        average = (counts * levels).sum() / counts.sum()
        variance = (counts * (levels - average).square()).sum() / counts.sum()
        mean.append(round(average.item(), 6))
        std.append(round(max(variance.sqrt().item(), 1e-3), 6))
    target_mean, target_std = scale_of(tensors["train.labels"]) if task == "regression" else (None, None)
    packed = Packed(
        classes=classes,
        channels=channels,
        height=height,
        width=width,
        mean=mean,
        std=std,
        images={split: len(tensors[f"{split}.labels"]) for split in SPLITS},
        held_out=held_out,
        warnings=warnings,
        many_sizes="train.encoded" in tensors,
        task=task or ("multilabel" if tensors["train.labels"].dim() > 1 else "classification"),
        class_pixels=class_pixels,
        names=names,
        target_mean=target_mean,
        target_std=target_std,
        masks=masks,
    )
    write_safetensors(out, tensors, {"wbar.dataset": json.dumps(packed.document(), sort_keys=True)})
    return packed
