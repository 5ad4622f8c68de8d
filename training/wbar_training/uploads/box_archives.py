"""Packed datasets of detection: images, and boxes with their classes from COCO's JSON or Pascal VOC's XML.

    train/images/a.jpg   train/annotations.json   val/images/…   val/annotations.json          (also without `images/`)
    train2017/a.jpg      val2017/…   annotations/instances_train2017.json   …                  (COCO's own)
    train/images/a.jpg   train/annotations/a.xml   val/…                                       (VOC's XML, or beside images)
    JPEGImages/a.jpg     Annotations/a.xml         ImageSets/Main/train.txt   …                (VOC's own, see `voc_folders`)

also below one common folder. The classes are `background`, 0, and from 1 on the categories in the order of their ids, as
torchvision's networks have them. An image that is listed and has no annotation is background.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from wbar.datasets import BACKGROUND
from wbar.errors import InvalidArchive, NoImages
from wbar_averaging.quoting import quoted
from wbar_training.data.boxes import COLUMNS, CROWD
from wbar_training.data.decoding import Inspected
from wbar_training.data.packed import Packed
from wbar_training.uploads.boxed import Boxed, mask_tensors, masks_of, measured
from wbar_training.uploads.coco import Coco, read_coco, rows_of
from wbar_training.uploads.dataset_archives import (
    IMAGES,
    SPLITS,
    Read,
    common_shape,
    image_tensors,
    sampled_pixels,
    write_packed,
)
from wbar_training.uploads.held_out import divided
from wbar_training.uploads.image_checks import inspected, warnings_about
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.member_names import is_hidden
from wbar_training.uploads.voc import read_voc, voc_names
from wbar_training.uploads.voc_folders import BOXES, Listed, contents, voc_folders

LAYOUT = (
    "a detection archive is train/images/a.jpg and train/annotations.json, the same for val/; or COCO's own, train2017/a.jpg "
    "and annotations/instances_train2017.json; or with Pascal VOC's XML, train/annotations/a.xml, or VOC's own JPEGImages, "
    "Annotations and ImageSets/Main"
)
_FOLDER = re.compile(r"(train|val)(20\d\d)?")
_INSTANCES = re.compile(r"instances_(train|val)(20\d\d)?\.json")


@dataclass(frozen=True)
class Place:
    """Where a file of the archive belongs.

    path: of an image, or of the XML of one, below its split; None: it is COCO's annotations.
    """

    split: str
    path: str | None
    is_xml: bool = False


Files = dict[str, tuple[str, bytes]]  # name and content, by path below the split


def pack_boxes(read: Read, out: Path, limits: UploadLimits) -> Packed:
    """Pack the members that `read` yields. Raises a class of wbar.errors.Rejected, with the file's name."""
    voc = voc_folders(read, BOXES, limits, lambda name: _place(name) is not None)
    cocos, files = _read(read(lambda name: _place(name) is not None)) if voc is None else _of_voc(voc[0], read)
    images, warnings = _listed(cocos, files)
    warnings += voc[1] if voc else []
    seen = inspected([(one.name, one.data) for one in images], limits)
    names = cocos["train"].class_names()
    rows = _rows(cocos, names, images, seen)
    masks = masks_of(cocos, images, seen)
    if isinstance(masks, str):
        warnings.append(masks)
        masks = None
    if masks is not None:
        rows = measured(cocos, images, rows, masks)
    warnings += warnings_about([one.name for one in images], seen)
    division = divided([one.split for one in images])
    train, val = division.train, division.val
    warnings += division.warnings()
    _check_classes(names, [row for index in train for row in rows[index]])
    _check_scorable([row for index in val for row in rows[index]], len(val))
    shapes = [(one.height, one.width) for one in seen]
    channels = 1 if all(one.grey for one in seen) else 3
    uniform, tensors = len(set(shapes)) == 1, dict[str, Tensor]()
    for split, chosen in (("train", train), ("val", val)):
        tensors |= image_tensors(split, [images[index].data for index in chosen], channels, uniform)
        tensors |= _box_tensors(split, [rows[i] for i in chosen], [shapes[i] for i in chosen], 1 + len(names))
        if masks is not None:
            tensors |= mask_tensors(split, [masks[i] for i in chosen])
    pixels = sampled_pixels([images[index].data for index in train], channels)
    shape = (channels, *common_shape(shapes))
    return write_packed(
        out, tensors, [BACKGROUND, *names], pixels, division.held_out, warnings, shape,
        task="detection", masks=masks is not None,
    )  # fmt: skip


def _place(name: str) -> Place | None:
    """Return the place of an image or of annotations; None for other files."""
    parts = name.split("/")
    suffix = PurePosixPath(name).suffix.lower()
    if is_hidden(name):
        return None
    for at, part in enumerate(parts[:-1][:2]):
        own, folder = parts[at + 1 :], _FOLDER.fullmatch(part)
        if part == "annotations" and len(own) == 1 and (found := _INSTANCES.fullmatch(own[0])):
            return Place(found[1], None)
        if folder and suffix == ".json" and len(own) == 1:
            return Place(folder[1], None)
        if folder and suffix in (*IMAGES, ".xml"):
            inner = own[1:] if own[0] in ("images", "annotations") and len(own) > 1 else own
            return Place(folder[1], "/".join(inner), suffix == ".xml")
    return None


def _read(members: Iterator[tuple[str, bytes]]) -> tuple[dict[str, Coco], dict[str, Files]]:
    """Return annotations by split, and images by split and path."""
    cocos, files, trees = dict[str, Coco](), {split: Files() for split in SPLITS}, {split: Files() for split in SPLITS}
    for name, data in members:
        place = _place(name)
        assert place is not None
        if place.path is None:
            if place.split in cocos:
                raise InvalidArchive(
                    f"{quoted(name)} and {quoted(cocos[place.split].name)} are both annotations of {place.split}/: one file"
                )
            cocos[place.split] = read_coco(name, data)
            continue
        taken = (trees if place.is_xml else files)[place.split]
        if place.path in taken:
            other = taken[place.path][0]
            raise InvalidArchive(f"{quoted(name)} and {quoted(other)} are both {quoted(place.path)} of {place.split}/")
        taken[place.path] = (name, data)
    if len(files["train"]) < 2:
        raise NoImages(f"there are fewer than two images in train/: {LAYOUT}")
    cocos = cocos or _of_trees(trees, files)
    for split, found in files.items():
        if found and split not in cocos:
            raise InvalidArchive(f"{split}/ has {len(found)} images and no annotations: {LAYOUT}")
    return cocos, files


def _of_trees(trees: dict[str, Files], files: dict[str, Files]) -> dict[str, Coco]:
    """Return the annotations in VOC's XML, by split; both have all classes, by their names."""
    stems = {split: {_stem(path): one for path, one in own.items()} for split, own in trees.items()}
    names = sorted({name for own in stems.values() for name in voc_names(own)})
    images = {split: {_stem(path): path for path in own} for split, own in files.items()}
    return {split: read_voc(split, own, images[split], names) for split, own in stems.items() if own}


def _of_voc(listed: Sequence[Listed], read: Read) -> tuple[dict[str, Coco], dict[str, Files]]:
    """Return the same of VOC's own folders."""
    members = contents(read, {one.image for one in listed} | {one.labels for one in listed})
    trees, files = dict[str, Files](), {split: Files() for split in SPLITS}
    for one in listed:
        trees.setdefault(one.split, {})[one.name] = (one.labels, members[one.labels])
        files[one.split][PurePosixPath(one.image).name] = (one.image, members[one.image])
    names = sorted({name for own in trees.values() for name in voc_names(own)})
    images = {PurePosixPath(one.image).stem: PurePosixPath(one.image).name for one in listed}
    return {split: read_voc(split, own, images, names, BOXES.folder) for split, own in trees.items()}, files


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _listed(cocos: dict[str, Coco], files: dict[str, Files]) -> tuple[list[Boxed], list[str]]:
    """Return the images that the annotations list, by split and id, and warnings about others."""
    images, warnings = list[Boxed](), list[str]()
    for split in (one for one in SPLITS if one in cocos):
        coco, own = cocos[split], files[split]
        entries = {_normal(entry.file_name): entry for entry in sorted(coco.images, key=lambda one: one.id)}
        missing = [path for path in entries if path not in own]
        if missing:
            raise InvalidArchive(
                f"{quoted(coco.name)} lists {len(missing)} images that the archive does not have, the first "
                f"{quoted(missing[0])}: {quoted(f'{split}/images/{missing[0]}')} is expected"
            )
        if len(entries) < (2 if split == "train" else 1):
            raise NoImages(f"{quoted(coco.name)} lists {len(entries)} images: {LAYOUT}")
        images += [Boxed(split, *own[path], entry) for path, entry in entries.items()]
        others = sorted(own.keys() - entries.keys())
        if others:
            warnings.append(
                f"{len(others)} images of {split}/ were left out (the first: {quoted(others[0])}): {coco.name} does not list "
                "them"
            )
    return images, warnings


def _normal(file_name: str) -> str:
    """Return the path of an image below its split, as an entry may spell it."""
    path = PurePosixPath(file_name.replace("\\", "/"))
    return str(path.relative_to("images")) if path.parts[:1] == ("images",) and len(path.parts) > 1 else str(path)


def _rows(
    cocos: dict[str, Coco], names: list[str], images: list[Boxed], seen: list[Inspected]
) -> list[list[list[float]]]:
    """Return the boxes of every image, after comparing the image's size with what the annotations say."""
    classes = {name: index for index, name in enumerate(names, start=1)}
    outputs, boxes = dict[str, dict[int, int]](), {split: coco.boxes() for split, coco in cocos.items()}
    for split, coco in cocos.items():
        unknown = sorted({one.name for one in coco.categories} - classes.keys())
        if unknown:
            first = ", ".join(map(quoted, unknown[:20]))
            raise InvalidArchive(
                f"{quoted(coco.name)} has categories that {quoted(cocos['train'].name)} has not: {first}"
            )
        outputs[split] = {one.id: classes[one.name] for one in coco.categories}
    rows = []
    for one, image in zip(images, seen, strict=True):
        entry, coco = one.entry, cocos[one.split]
        said = (entry.height or image.height, entry.width or image.width)
        if said != (image.height, image.width):
            turned = ", turned as its EXIF orientation says" if image.turned else ""
            raise InvalidArchive(
                f"{quoted(one.name)} has {image.width}x{image.height} pixels{turned}, and {quoted(coco.name)} says "
                f"{said[1]}x{said[0]}: boxes are in pixels of the image"
            )
        found = boxes[one.split][entry.id]
        rows.append(rows_of(coco, found, outputs[one.split], one.name, (image.height, image.width)))
    return rows


def _check_classes(names: list[str], rows: list[list[float]]) -> None:
    used = {int(row[0]) for row in rows if not row[-1]}
    without = [name for index, name in enumerate(names, start=1) if index not in used]
    if without:
        raise InvalidArchive(
            f"{len(without)} categories have no box in the training images, the first {quoted(without[0])}: nothing can be "
            "learned of them. Leave them out of `categories`"
        )


def _check_scorable(rows: list[list[float]], images: int) -> None:
    if all(row[CROWD] for row in rows):
        raise InvalidArchive(
            f"the {images} held-out images have {'boxes of crowds alone' if rows else 'no box'}: nothing could be scored. "
            "Images without a box are background beside others that have some: annotate val/"
        )


def _box_tensors(
    split: str, rows: list[list[list[float]]], shapes: list[tuple[int, int]], classes: int
) -> dict[str, Tensor]:
    present = torch.zeros(len(rows), classes, dtype=torch.uint8)
    for index, own in enumerate(rows):
        present[index, sorted({int(row[0]) for row in own}) or [0]] = 1
    counts = torch.tensor([0, *map(len, rows)])
    return {
        f"{split}.labels": present,
        f"{split}.sizes": torch.tensor(shapes, dtype=torch.int32),
        f"{split}.boxes": torch.tensor([row for own in rows for row in own], dtype=torch.float32).view(-1, COLUMNS),
        f"{split}.box_offsets": counts.cumsum(0),
    }
