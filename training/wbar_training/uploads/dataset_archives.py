"""Packed dataset files of archives, folders and built-in sets, after every image was decoded once.

Expected layout: `train/<class>/*.{jpg,jpeg,png,webp}` and `val/<class>/…`, also below one common folder; for images
with several labels `train/…`, `val/…` and `labels.csv`. Where there is no `val/`, a stratified 20 % of `train/` is held
out with a fixed seed, and the indices are stored with the dataset.
"""

import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from wbar.catalog import BUILTINS
from wbar.errors import (
    BrokenImage,
    ContentTooLarge,
    InvalidArchive,
    NoImages,
    TooFewClasses,
    UnknownSource,
    UnsafePath,
)
from wbar_averaging import write_safetensors
from wbar_training.data.packed import FORMATS, Packed, decode, is_grey
from wbar_training.uploads.builtin_images import digits, fashion
from wbar_training.uploads.label_table import LabelTable

IMAGES = {".jpg", ".jpeg", ".png", ".webp"}
SPLITS = ("train", "val")
UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError,
              RuntimeError)  # fmt: skip
HELD_OUT, HELD_OUT_SEED = 0.2, 0


@dataclass(frozen=True)
class Limits:
    """The most that an archive may unpack to: bytes, files, and pixels of one image."""

    bytes: int = 20 * 1024**3
    files: int = 2_000_000
    pixels: int = 100_000_000  # of one image


@dataclass(frozen=True)
class Item:
    """One image file of the archive, still encoded.

    label: its class; of several labels, its path in `labels.csv`.
    """

    split: str
    label: str
    name: str
    data: bytes


def pack_archive(path: Path, out: Path, limits: Limits, multilabel: bool = False) -> Packed:
    """Pack a zip, tar, tar.gz or tar.zst (the content decides). Raises a class of wbar.errors.Rejected.

    multilabel: the labels are those of `labels.csv` (see `wbar_training.uploads.label_table`), not the folders' names.
    """
    return _pack(_members(path, limits), out, limits, multilabel)


def pack_folder(folder: Path, out: Path, limits: Limits, multilabel: bool = False) -> Packed:
    """Pack a folder alike; it may hold no links."""
    return _pack(_files(folder, limits), out, limits, multilabel)


def _pack(members: Iterator[tuple[str, bytes]], out: Path, limits: Limits, multilabel: bool) -> Packed:
    if not multilabel:
        return _pack_items(_relevant(members, 2), out, limits, None)
    table = LabelTable()
    return _pack_items(_relevant(table.taken_from(members), 1), out, limits, table)


def pack_builtin(name: str, out: Path, max_train_images: int | None) -> Packed:
    """Pack `digits` (scikit-learn's 1,797 scans) or `fashion-mnist` (official test set as `val`).

    max_train_images: keep this many training images, stratified; None: all.

    Raises UnknownSource, or SourceUnavailable where the images are not there.
    """
    if name not in BUILTINS:
        raise UnknownSource(f"builtin:{name} does not exist; there are {', '.join(f'builtin:{n}' for n in BUILTINS)}")
    if name == "digits":
        images, labels = digits()
        held_out = stratified(labels.tolist(), HELD_OUT, HELD_OUT_SEED)
        held_out_set = set(held_out)
        kept = [index for index in range(len(labels)) if index not in held_out_set]
        splits = {"train": (images[kept], labels[kept]), "val": (images[held_out], labels[held_out])}
    else:
        splits = {"train": fashion("train"), "val": fashion("t10k")}
    if max_train_images is not None and max_train_images < len(splits["train"][1]):
        images, labels = splits["train"]
        keep = stratified(labels.tolist(), max_train_images / len(labels), HELD_OUT_SEED)
        splits["train"] = (images[keep], labels[keep])
    tensors: dict[str, Tensor] = {}
    for split, (images, labels) in splits.items():
        tensors[f"{split}.images"], tensors[f"{split}.labels"] = images, labels
    return write_packed(out, tensors, list(BUILTINS[name].classes), splits["train"][0], None, [])


# Reading the source.


def _members(path: Path, limits: Limits) -> Iterator[tuple[str, bytes]]:
    with open(path, "rb") as file:
        head = file.read(4)
    try:
        if head[:2] == b"PK":
            yield from _zip_members(path, limits)
        else:
            yield from _tar_members(path, head, limits)
    except UNREADABLE as error:
        raise InvalidArchive(
            f"the archive cannot be read ({str(error)[:200]}): expected a zip, tar, tar.gz or tar.zst with "
            "train/<class>/ images; was the upload cut off?"
        ) from None


def _zip_members(path: Path, limits: Limits) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        _check_totals(len(entries), sum(entry.file_size for entry in entries), limits)
        for entry in entries:
            if (entry.external_attr >> 16) & 0o170000 == 0o120000:
                raise UnsafePath(f"{entry.filename!r} is a link: archives may hold plain files only")
            if entry.flag_bits & 1:
                raise InvalidArchive(f"{entry.filename!r} is encrypted")
            if not entry.is_dir():
                with archive.open(entry) as file:
                    yield _checked(entry.filename), _read_at_most(file, entry.file_size, entry.filename)
            else:
                _checked(entry.filename)


def _tar_members(path: Path, head: bytes, limits: Limits) -> Iterator[tuple[str, bytes]]:
    with _tar_stream(path, head) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        files = total = 0
        for entry in archive:
            name = _checked(entry.name)
            if entry.issym() or entry.islnk():
                raise UnsafePath(f"{entry.name!r} is a link: archives may hold plain files only")
            if entry.isdir():
                continue
            if not entry.isfile():
                raise UnsafePath(f"{entry.name!r} is a device or pipe: archives may hold plain files only")
            files, total = files + 1, total + entry.size
            _check_totals(files, total, limits)
            file = archive.extractfile(entry)
            assert file is not None
            yield name, _read_at_most(file, entry.size, entry.name)


@contextmanager
def _tar_stream(path: Path, head: bytes) -> Iterator[Any]:
    if head[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        try:
            with open(path, "rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
                yield stream
        except zstandard.ZstdError as error:
            raise InvalidArchive(f"the zstd stream cannot be read: {error}") from None
    elif head[:2] == b"\x1f\x8b":
        with gzip.open(path, "rb") as stream:
            yield stream
    else:
        with open(path, "rb") as stream:
            yield stream


def _read_at_most(file: IO[bytes], size: int, name: str) -> bytes:
    data = file.read(size + 1)
    if len(data) != size:
        raise InvalidArchive(f"{name!r} claims {size} bytes and holds {'more' if len(data) > size else len(data)}")
    return data


def _check_totals(files: int, total: int, limits: Limits) -> None:
    if files > limits.files:
        raise ContentTooLarge(f"the archive has {files} files, more than the limit of {limits.files}")
    if total > limits.bytes:
        raise ContentTooLarge(f"the archive unpacks to {total} bytes or more, over the limit of {limits.bytes}")


def _checked(name: str) -> str:
    if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts or "\0" in name:
        raise UnsafePath(f"{name!r} points outside the archive")
    return name


def _files(folder: Path, limits: Limits) -> Iterator[tuple[str, bytes]]:
    files = total = 0
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise UnsafePath(f"{str(path.relative_to(folder))!r} is a link: folders may hold plain files only")
        if path.is_file():
            files, total = files + 1, total + path.stat().st_size
            _check_totals(files, total, limits)
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _relevant(members: Iterator[tuple[str, bytes]], depth: int) -> Iterator[Item]:
    """Yield the images below <split>/<class>/ (depth 2) or <split>/ (1); hidden files and system folders are skipped."""
    for name, data in members:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        at = next((index for index, part in enumerate(parts[:-depth]) if part in SPLITS), None)
        if at is not None and at <= 1 and PurePosixPath(parts[-1]).suffix.lower() in IMAGES:
            label = parts[at + 1] if depth == 2 else "/".join(parts[at:])
            yield Item(split=parts[at], label=label, name=name, data=data)


# Packing.


def _pack_items(items: Iterator[Item], out: Path, limits: Limits, table: LabelTable | None) -> Packed:
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = limits.pixels
    kept = sorted(items, key=lambda item: item.name)
    classes = _classes(kept, table)
    shapes, grey = _inspect(kept, limits)
    channels = 1 if grey else 3
    warnings: list[str] = []
    held_out: list[int] | None = None
    train = [item for item in kept if item.split == "train"]
    val = [item for item in kept if item.split == "val"]
    if not val:
        held_out = stratified(["" if table else item.label for item in train], HELD_OUT, HELD_OUT_SEED)
        held_out_set = set(held_out)
        val, train = [train[i] for i in held_out], [item for i, item in enumerate(train) if i not in held_out_set]
        warnings.append(
            f"there is no val/: {len(val)} of the images in train/ were held out (20 % of each class, fixed seed). The "
            "start may have been trained on them, which flatters it in the comparison"
        )
    height, width = _common_shape(shapes)
    uniform = len(set(shapes)) == 1
    tensors: dict[str, Tensor] = {}
    for split, items_of_split in (("train", train), ("val", val)):
        names = [item.label for item in items_of_split]
        tensors[f"{split}.labels"] = (
            table.labels(names) if table else torch.tensor([classes.index(name) for name in names])
        )
        if uniform:
            tensors[f"{split}.images"] = torch.stack([decode(item.data, channels) for item in items_of_split])
        else:
            tensors[f"{split}.encoded"] = torch.frombuffer(
                bytearray(b"".join(item.data for item in items_of_split)), dtype=torch.uint8
            )
            tensors[f"{split}.offsets"] = torch.tensor([0, *np.cumsum([len(item.data) for item in items_of_split])])
    sample = [decode(item.data, channels) for item in train[:: max(1, len(train) // 2000)]] if not uniform else None
    pixels = tensors["train.images"] if sample is None else torch.cat([s.reshape(channels, -1) for s in sample], dim=1)
    return write_packed(out, tensors, classes, pixels, held_out, warnings, (channels, height, width))


def _classes(items: list[Item], table: LabelTable | None) -> list[str]:
    """Return the names of the classes, after checking them."""
    if table is None:
        classes = sorted({item.label for item in items if item.split == "train"})
        _check_classes(items, classes)
        return classes
    table.read()
    if sum(item.split == "train" for item in items) < 2:
        raise NoImages("no images were found in train/: a multilabel archive is train/*.jpg, val/*.jpg and labels.csv")
    table.check_used({item.label for item in items})
    return table.classes


def _check_classes(items: list[Item], classes: list[str]) -> None:
    counts = Counter(item.label for item in items if item.split == "train")
    if not counts:
        raise NoImages(
            "no images were found in train/<class>/: the layout is train/<class>/*.{jpg,png,webp} and, if you have "
            "held-out images, val/<class>/…"
        )
    if len(classes) < 2:
        raise TooFewClasses(f"train/ has a single class, {classes[0]!r}: a classifier needs at least two")
    small = [f"{label}: {count}" for label, count in sorted(counts.items()) if count < 2]
    if small:
        raise TooFewClasses(f"these classes have a single image in train/: {', '.join(small[:20])}; two are needed")
    unknown = sorted({item.label for item in items if item.split == "val"} - set(classes))
    if unknown:
        raise InvalidArchive(f"val/ has classes that train/ does not: {unknown[:20]}")


def _inspect(items: list[Item], limits: Limits) -> tuple[list[tuple[int, int]], bool]:
    """Return height and width of every image, and whether all are grey. Raises BrokenImage naming the first broken one."""
    shapes, grey = [], True
    for item in items:
        try:
            with Image.open(io.BytesIO(item.data), formats=FORMATS) as image:
                if image.width * image.height > limits.pixels:
                    raise ContentTooLarge(
                        f"{item.name!r} has {image.width}x{image.height} pixels, over the limit of {limits.pixels}"
                    )
                image.load()
                shapes.append((image.height, image.width))
                grey = grey and is_grey(image)
        except ContentTooLarge:
            raise
        except Exception as error:
            # Decoders raise many types for a damaged file; all mean that this image is broken.
            raise BrokenImage(f"{item.name!r} cannot be decoded: {str(error)[:200]}") from None
    return shapes, grey


def _common_shape(shapes: list[tuple[int, int]]) -> tuple[int, int]:
    return int(np.median([height for height, _ in shapes])), int(np.median([width for _, width in shapes]))


def stratified(labels: Sequence[int | str], fraction: float, seed: int) -> list[int]:
    """Draw `fraction` of every class, at least one image of each, with a fixed seed. Returns sorted indices."""
    by_label: dict[int | str, list[int]] = {}
    for index, label in enumerate(labels):
        by_label.setdefault(label, []).append(index)
    drawn: list[int] = []
    draws = random.Random(seed)
    for label in sorted(by_label, key=str):
        members = by_label[label]
        drawn += draws.sample(members, min(len(members) - 1, max(1, round(fraction * len(members)))))
    return sorted(drawn)


def write_packed(
    out: Path,
    tensors: dict[str, Tensor],
    classes: list[str],
    pixels: Tensor,
    held_out: list[int] | None,
    warnings: list[str],
    shape: tuple[int, int, int] | None = None,
) -> Packed:
    """Write a packed file, and return its metadata.

    tensors: by name, as the file holds them.
    pixels: (N, C, H, W) or (C, pixels) uint8 of the training split, for the statistics.
    shape: channels, height and width; None: those of `pixels`.
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
    )
    write_safetensors(out, tensors, {"wbar.dataset": json.dumps(asdict(packed), sort_keys=True)})
    return packed
