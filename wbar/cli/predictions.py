"""What a network answered about pictures, in a line for each."""

import base64
from collections.abc import Sequence
from pathlib import Path

import typer

from wbar.predictions import (
    AnyPredictions,
    AttributePrediction,
    AttributePredictions,
    ClassPredictions,
    ClassProbability,
    FoundBox,
    NumberPrediction,
    NumberPredictions,
    PixelPrediction,
    PixelPredictions,
)

CLASSES, BOXES = 3, 10  # that are named of an image


def in_words(found: AnyPredictions, top: int | None) -> list[str]:
    """Return the answer about each image. top: how many classes or boxes are named; None: as many as a line takes."""
    if isinstance(found, ClassPredictions):
        return [", ".join(map(_probability, one.top[: top or CLASSES])) for one in found.data]
    if isinstance(found, AttributePredictions):
        return [_attributes(one, top or 1) for one in found.data]
    if isinstance(found, NumberPredictions):
        return [_numbers(one) for one in found.data]
    if isinstance(found, PixelPredictions):
        return [_shares(one) for one in found.data]
    return [_boxes(one.boxes, top or BOXES) for one in found.data]


def map_paths(files: Sequence[Path], folder: Path) -> list[Path]:
    """Return where the class map of each image is written. Raises BadParameter for doubled names, and for files that exist."""
    paths = [folder / f"{file.stem}.png" for file in files]
    doubled = next((path for path in paths if paths.count(path) > 1), None)
    if doubled is not None:
        raise typer.BadParameter(f"two images would be written to {str(doubled)!r}: ask about one at a time")
    there = next((path for path in paths if path.exists()), None)
    if there is not None:
        raise typer.BadParameter(f"{str(there)!r} exists and is not written over: name another folder, or remove it")
    return paths


def write_maps(found: AnyPredictions, paths: Sequence[Path]) -> None:
    """Write the class map of each image. paths: of `map_paths`. Raises BadParameter for other tasks."""
    if not isinstance(found, PixelPredictions):
        raise typer.BadParameter(f"--masks is of segmentation, and the job is of task {found.task}")
    for path, one in zip(paths, found.data, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(one.map))


def _probability(one: ClassProbability) -> str:
    spread = "" if one.deviation is None else f" ± {one.deviation:.1%}"
    return f"{one.label} {one.probability:.1%}{spread}"


def _attributes(one: AttributePrediction, most: int) -> str:
    return ", ".join(f"{name}: {', '.join(map(_probability, top[:most]))}" for name, top in one.attributes.items())


def _numbers(one: NumberPrediction) -> str:
    spreads = {} if one.deviations is None else {name: f" ± {spread:.4g}" for name, spread in one.deviations.items()}
    return ", ".join(f"{name} {value:.7g}{spreads.get(name, '')}" for name, value in one.values.items())


def _shares(one: PixelPrediction) -> str:
    shares = sorted(one.shares.items(), key=lambda share: -share[1])
    return ", ".join(f"{name} {share:.1%}" for name, share in shares if share > 0)


def _boxes(boxes: Sequence[FoundBox], most: int) -> str:
    said = [f"{one.label} {one.score:.1%} [{', '.join(f'{side:.0f}' for side in one.box)}]" for one in boxes[:most]]
    more = f" and {len(boxes) - most} more" if len(boxes) > most else ""
    return ", ".join(said) + more if said else "nothing"
