"""Annotations in COCO's JSON: which boxes an image has, and of which category (cocodataset.org, "Data format").

    {"images": [{"id", "file_name", "width", "height"}], "categories": [{"id", "name"}],
     "annotations": [{"id", "image_id", "category_id", "bbox": [x, y, width, height], "area", "iscrowd", "segmentation"}]}

What else is in it (keypoints, licences) is not read. `segmentation` is described in `coco_masks`. Coordinates are in pixels
from the upper left corner.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from wbar.datasets import BACKGROUND
from wbar.errors import ContentTooLarge, InvalidArchive, TooFewClasses
from wbar_averaging.quoting import quoted, reason
from wbar_training.uploads.coco_masks import compact
from wbar_training.uploads.json_lists import entries
from wbar_training.uploads.member_names import check_class_names

MOST_BYTES = 1024**3  # COCO's own largest file has 450 MB, of which nine tenths are outlines
MOST_CATEGORIES = 10_000
OUTSIDE = 1.0  # pixels that a box may reach beyond its image, as rounding has it; it is cut there


Number = Annotated[float, Field(strict=True)]  # neither a text nor true


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An entry of `images`."""

    id: int
    file_name: Annotated[str, Field(max_length=4096)]
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class CocoAnnotation:
    """An entry of `annotations`."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[Number, Number, Number, Number]
    area: Number | None = None
    iscrowd: Literal[0, 1] = 0
    segmentation: object = None  # `coco_masks.compact`, and looked into where every box has one

    @property
    def has_mask(self) -> bool:
        """Whether there is a mask; some tools write an empty list or object where there is none."""
        return self.segmentation not in (None, [], [[]], {})


@dataclass(frozen=True, slots=True)
class CocoCategory:
    """An entry of `categories`."""

    id: int
    name: str


@dataclass(frozen=True)
class Coco:
    """The annotations of one split. name: of their file."""

    name: str
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]

    def class_names(self) -> list[str]:
        """Return the names of the categories, in the order of their ids."""
        return [one.name for one in sorted(self.categories, key=lambda one: one.id)]

    def boxes(self) -> dict[int, list[CocoAnnotation]]:
        """Return the annotations of each image, by its id."""
        found: dict[int, list[CocoAnnotation]] = {image.id: [] for image in self.images}
        for one in self.annotations:
            found[one.image_id].append(one)
        return found


_ENTRIES: dict[str, TypeAdapter[Any]] = {
    "images": TypeAdapter(CocoImage),
    "annotations": TypeAdapter(CocoAnnotation),
    "categories": TypeAdapter(CocoCategory),
}


def read_coco(name: str, data: bytes) -> Coco:
    """Return the annotations in a file, checked but for what only its images tell.

    Raises ContentTooLarge, InvalidArchive or TooFewClasses, which name the file and the place in it.
    """
    if len(data) > MOST_BYTES:
        raise ContentTooLarge(
            f"{quoted(name)} has {len(data)} bytes, over the limit of {MOST_BYTES}: leave out what is not read of it "
            "(`keypoints`, and `segmentation` unless masks are to be learned), or split the dataset"
        )
    found: dict[str, list[Any]] = {field: [] for field in _ENTRIES}
    try:
        for field, number, entry in entries(data.decode("utf-8-sig"), _ENTRIES):
            found[field].append(_validated(field, number, entry))
    except RecursionError:
        raise InvalidArchive(f"{quoted(name)} is not COCO's JSON: it is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidArchive(f"{quoted(name)} is not COCO's JSON: Invalid JSON: {reason(error)}") from None
    except ValueError as error:
        raise InvalidArchive(f"{quoted(name)} is not COCO's JSON: {error}") from None
    return checked(Coco(name, **found))


def checked(coco: Coco) -> Coco:
    """Return annotations after checking what they say of themselves. Raises InvalidArchive or TooFewClasses."""
    _check_categories(coco)
    _check_ids(coco)
    return coco


def _validated(field: str, number: int, entry: Any) -> Any:
    """Return an entry of a list, checked, its outlines compact. Raises ValueError, which names the place."""
    if isinstance(entry, dict) and "segmentation" in entry:
        entry["segmentation"] = compact(entry["segmentation"])
    try:
        return _ENTRIES[field].validate_python(entry)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, (field, number, *first["loc"])))
        raise ValueError(f"{place}: {first['msg']}") from None


def _check_categories(coco: Coco) -> None:
    names = [one.name for one in coco.categories]
    if not names:
        raise TooFewClasses(f"{quoted(coco.name)} has no categories: there is nothing to detect")
    if len(names) > MOST_CATEGORIES:
        raise InvalidArchive(f"{quoted(coco.name)} has {len(names)} categories: at most {MOST_CATEGORIES}")
    check_class_names(names, f"{coco.name}: the category")
    _check_once(coco.name, "categories have the id", [one.id for one in coco.categories])
    _check_once(coco.name, "categories have the name", names)
    if BACKGROUND in names:
        raise InvalidArchive(
            f"{quoted(coco.name)} has a category {quoted(BACKGROUND)}: what has no box is background by itself, class 0. Leave "
            "the category out"
        )


def _check_ids(coco: Coco) -> None:
    _check_once(coco.name, "images have the id", [one.id for one in coco.images])
    _check_once(coco.name, "images have the file_name", [one.file_name for one in coco.images])
    _check_once(coco.name, "annotations have the id", [one.id for one in coco.annotations])
    images, categories = {one.id for one in coco.images}, {one.id for one in coco.categories}
    for one in coco.annotations:
        if one.image_id not in images:
            raise InvalidArchive(f"{_of(coco, one)} is of image {one.image_id}, which `images` does not have")
        if one.category_id not in categories:
            known = ", ".join(map(str, sorted(categories)[:20]))
            raise InvalidArchive(
                f"{_of(coco, one)} is of category {one.category_id}, which `categories` does not have: its ids are {known}"
            )
        _, _, width, height = one.bbox
        if not all(map(math.isfinite, one.bbox)) or not 0 <= (one.area or 0.0) < math.inf:
            raise InvalidArchive(
                f"{_of(coco, one)} has the bbox {list(one.bbox)} and the area {one.area}: they must be finite, and the area 0 "
                "or more"
            )
        if width <= 0 or height <= 0:
            raise InvalidArchive(
                f"{_of(coco, one)} has the bbox {list(one.bbox)}, which is empty or inverted: a bbox is [x, y, width, height], "
                "width and height above 0"
            )


def _check_once(name: str, what: str, values: Sequence[object]) -> None:
    seen = set[object]()
    for value in values:
        if value in seen:
            shown = quoted(value) if isinstance(value, str) else value
            raise InvalidArchive(f"{quoted(name)}: two {what} {shown}, which must be of one")
        seen.add(value)


def _of(coco: Coco, one: CocoAnnotation) -> str:
    return f"{quoted(coco.name)}: annotation {one.id}"


def rows_of(
    coco: Coco, annotations: Iterable[CocoAnnotation], outputs: dict[int, int], image: str, size: tuple[int, int]
) -> list[list[float]]:
    """Return an image's boxes as rows of `data.boxes`: class, corners, area, whether it is a crowd.

    outputs: the class of each category, by its id. image: the name of its file. size: its (height, width) in pixels.

    Raises InvalidArchive for a box that is not in the image.
    """
    rows = []
    height, width = size
    for one in annotations:
        x, y, wide, high = one.bbox
        right, bottom = x + wide, y + high
        if x < -OUTSIDE or y < -OUTSIDE or right > width + OUTSIDE or bottom > height + OUTSIDE:
            raise InvalidArchive(
                f"{_of(coco, one)} has the bbox {list(one.bbox)}, which reaches out of its image {quoted(image)} of "
                f"{width}x{height} pixels"
            )
        corners = [max(x, 0.0), max(y, 0.0), min(right, float(width)), min(bottom, float(height))]
        if corners[0] >= corners[2] or corners[1] >= corners[3]:
            raise InvalidArchive(
                f"{_of(coco, one)} has the bbox {list(one.bbox)}, of which nothing is in {quoted(image)}"
            )
        area = wide * high if one.area is None else one.area
        rows.append([float(outputs[one.category_id]), *corners, area, float(one.iscrowd)])
    return rows
