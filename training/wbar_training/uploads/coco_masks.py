"""The masks in COCO's `segmentation`: polygons, or runs along the columns of the image (cocodataset.org, "Data format").

    polygons   [[x1, y1, x2, y2, …], …], in pixels; the mask is all that any of them encloses
    runs       {"size": [height, width], "counts": [outside, inside, outside, …]}, down one column after another
    as text    the same with `counts` as a string: each number in groups of five bits, the lowest first, as characters from
               "0" on, +32 where more follow; from the fourth number on the difference to the one before the last

A polygon's pixels are those that COCO's own library gives it, which lays points at fifths of a pixel along the outline, and
lets it cross a column at the column's middle. What a stranger sent is checked before anything is made of it.
"""

from array import array
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from wbar.errors import InvalidArchive

FIFTHS = 5
OUTSIDE = 1.0  # pixels that a point may lie beyond its image, as rounding has it
MOST_POINTS = 2**24  # fifths of a pixel along one outline
MOST_GROUPS = 7  # of five bits, in one number of runs as text
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CocoRuns:
    """Runs. size: (height, width) in pixels. counts: pixels outside and inside in turn, or these as text."""

    size: tuple[int, int]
    counts: list[int] | str


@dataclass(frozen=True, slots=True)
class Outlines:
    """Polygons, each x1, y1, x2, y2, … in pixels: 8 bytes a number, where Python's lists take four times as many."""

    polygons: "tuple[array[float], ...]"


Segmentation = list[list[float]] | CocoRuns
_SEGMENTATION: TypeAdapter[Segmentation] = TypeAdapter(Segmentation)


def compact(segmentation: object) -> object:
    """Return polygons as Outlines, a list of counts as an array; anything else as it is, for `mask_of` to take or refuse.

    segmentation: as the JSON has it.
    """
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        with suppress(TypeError, OverflowError):
            segmentation["counts"] = array("q", segmentation["counts"])
        return segmentation
    if not isinstance(segmentation, list) or not segmentation or not all(isinstance(one, list) for one in segmentation):
        return segmentation
    try:
        polygons = tuple(array("d", one) for one in segmentation)
    except (TypeError, OverflowError):
        return segmentation
    return Outlines(polygons) if any(polygons) else segmentation


def mask_of(segmentation: object, size: tuple[int, int], where: str) -> Mask:
    """Return the mask of an annotation, (H, W).

    segmentation: as the JSON has it, or of `compact`.
    size: (height, width) of the image in pixels.
    where: names file and annotation, for the error.

    Raises InvalidArchive where it is none, is of another size, or leaves the image; or where it is empty.
    """
    known = segmentation if isinstance(segmentation, Outlines) else _validated(segmentation, where)
    mask = _of_runs(known, size, where) if isinstance(known, CocoRuns) else np.zeros(size, bool)
    for number, outline in enumerate(() if isinstance(known, CocoRuns) else known.polygons):
        _fill(mask, outline, f"{where}, polygon {number} of its `segmentation`")
    if not mask.any():
        raise InvalidArchive(
            f"{where} has a `segmentation` without a pixel of its image of {size[1]}x{size[0]} pixels: leave the annotation "
            "out, or draw what is seen of it"
        )
    return mask


def _validated(segmentation: object, where: str) -> Outlines | CocoRuns:
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), array):
        segmentation = segmentation | {"counts": segmentation["counts"].tolist()}
    try:
        known: Segmentation = _SEGMENTATION.validate_python(segmentation)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidArchive(
            f"{where} has a `segmentation` that is neither polygons nor runs: {first['msg']}"
        ) from None
    return known if isinstance(known, CocoRuns) else Outlines(tuple(array("d", outline) for outline in known))


# Polygons.


def _fill(mask: Mask, outline: "array[float]", where: str) -> None:
    """Add what a polygon encloses to a mask, (H, W)."""
    height, width = mask.shape
    if len(outline) % 2 or len(outline) < 6:
        raise InvalidArchive(f"{where} has {len(outline)} numbers: x and y of three points or more")
    points = np.asarray(outline, np.float64).reshape(-1, 2)
    wrong = ~((points >= -OUTSIDE) & (points <= np.array([width, height]) + OUTSIDE)).all(axis=1)  # not a number, too
    if wrong.any():
        x, y = points[wrong][0].tolist()
        raise InvalidArchive(f"{where} has the point ({x:g}, {y:g}), outside its image of {width}x{height} pixels")
    across, down = _along(np.trunc(points * FIFTHS + 0.5).astype(np.int64), where)
    # Where the outline goes from one fifth to the next, and the line between them is the middle of a column.
    before, after = across[:-1], across[1:]
    steps = np.flatnonzero(before != after)
    column = np.minimum(before, after)[steps] - FIFTHS // 2
    row = np.ceil((np.minimum(down[:-1], down[1:])[steps] - FIFTHS // 2) / FIFTHS).clip(0, height).astype(np.int64)
    crossed = (column % FIFTHS == 0) & (column >= 0) & (column < FIFTHS * width)
    if not crossed.any():
        return
    # Below a crossing, what was outside is inside; each column of a closed outline is crossed an even number of times, so that
    # no pixel is inside beyond the rows and columns of the crossings.
    column, row = column[crossed] // FIFTHS, row[crossed]
    left, top, right, bottom = column.min(), row.min(), column.max() + 1, row.max()
    turns = np.zeros((right - left, bottom - top + 1), np.int32)
    np.add.at(turns, (column - left, row - top), 1)
    mask[top:bottom, left:right] |= (turns[:, :-1].cumsum(axis=1) % 2 == 1).T


def _along(corners: NDArray[np.int64], where: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return x and y of points along a polygon's sides, a step of the longer direction apart. corners: (n, 2) in fifths."""
    ends = np.roll(corners, -1, axis=0)
    lengths = np.abs(ends - corners).max(axis=1)
    if int(lengths.sum()) + len(lengths) > MOST_POINTS:
        raise InvalidArchive(
            f"{where} is {int(lengths.sum()) // FIFTHS} pixels long, over the limit of {MOST_POINTS // FIFTHS}"
        )
    flat = np.abs(ends - corners).argmax(axis=1) == 0  # longer in x, or equal
    long = np.where(flat, 0, 1)
    sides = np.arange(len(corners))
    backward = corners[sides, long] > ends[sides, long]  # both directions of a side give one line
    first, last = (np.where(backward[:, None], b, a) for a, b in ((corners, ends), (ends, corners)))
    slope = (last - first)[sides, 1 - long] / np.maximum(lengths, 1)
    side = np.repeat(sides, lengths + 1)
    step = np.arange(len(side)) - np.repeat(np.cumsum(lengths + 1) - lengths - 1, lengths + 1)
    step = np.where(backward[side], lengths[side] - step, step)
    along = first[side, long[side]] + step
    # Towards zero, as a cast of C's does it.
    beside = np.trunc(first[side, 1 - long[side]] + slope[side] * step + 0.5).astype(np.int64)
    return np.where(flat[side], along, beside), np.where(flat[side], beside, along)


# Runs.


def _of_runs(runs: CocoRuns, size: tuple[int, int], where: str) -> Mask:
    height, width = size
    if tuple(runs.size) != size:
        raise InvalidArchive(
            f"{where} has a `segmentation` of {runs.size[1]}x{runs.size[0]} pixels, and its image has {width}x{height}: `size` "
            "is [height, width]"
        )
    counts = _of_text(runs.counts, where) if isinstance(runs.counts, str) else runs.counts
    wrong = next((count for count in counts if not 0 <= count <= height * width), None)
    if wrong is not None or sum(counts) != height * width:
        said = f"the count {wrong}" if wrong is not None else f"counts of {sum(counts)} pixels"
        raise InvalidArchive(f"{where} has {said} in its `segmentation`, and its image has {height * width} pixels")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T.copy()


def _of_text(text: str, where: str) -> list[int]:
    """Return the counts that are written as text."""
    # JSON can spell half a surrogate pair, of which there is no UTF-8: like any other strange letter it is refused below.
    characters = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero(characters < 32)
    groups = np.diff(np.concatenate([[-1], ends]))
    known = bool(((characters >= 0) & (characters < 64)).all())
    if not known or not len(ends) or ends[-1] != len(characters) - 1 or groups.max() > MOST_GROUPS:
        raise InvalidArchive(f"{where} has `counts` that are no runs as COCO's library writes them")
    place = np.arange(len(characters)) - np.repeat(ends - groups + 1, groups)
    numbers = np.add.reduceat((characters & 31) << 5 * place, ends - groups + 1)
    numbers -= np.where(characters[ends] & 16, np.int64(1) << 5 * groups, 0)  # the highest bit is the sign
    # Each from the fourth on is a difference to the one two before it.
    numbers[1::2], numbers[2::2] = numbers[1::2].cumsum(), numbers[2::2].cumsum()
    return [int(number) for number in numbers]
