"""Which of timm's networks a checkpoint is: by the table, and by a build where only its image size is another one."""

from dataclasses import replace
from pathlib import Path

from wbar.spec import Network
from wbar_training.networks import timm_table
from wbar_training.networks.architectures import shapes_of
from wbar_training.networks.bounds import MOST_PIXELS
from wbar_training.networks.differences import Difference, Shapes, compare, names_digest
from wbar_training.networks.timm_table import Row, Table

POSITIONS = "pos_embed"
USUAL_SIDES = (128, 160, 192, 224, 240, 256, 288, 320, 336, 384, 448, 512)
MOST_TRIED = 2  # of networks with these names: each is built a dozen times


def table_for(shapes: Shapes, folder: Path) -> Table:
    """Return the table in a folder; where it is not written yet, one of the networks that may fit these shapes."""
    return timm_table.load(folder) or timm_table.table_of(timm_table.narrowed(shapes))


def row_of(name: str, table: Table | None) -> Row:
    """Return the row of a catalog name, from the table or from a build. Raises UnknownArchitecture."""
    return (table.row(name) if table else None) or timm_table.row_of(name)


def detect(shapes: Shapes, table: Table) -> tuple[Network, list[str]] | None:
    """Return the network that fits, and the names of others that fit too and compute something else.

    Of several the one with the plainest name is taken; one of another image size where none fits as it is.
    """
    rows = timm_table.plainest(table.signed(names_digest(shapes)))
    fits = [row for row in rows if compare(shapes, row.shapes(_usual(row, shapes))).is_empty]
    fits = fits or [row for row in rows if _image_size(row, shapes) is not None]
    fits = fits or [row for row in rows[:MOST_TRIED] if _as_built(row, shapes) is not None]
    if not fits:
        return None
    network, difference = read_off(fits[0], shapes)
    return (network, [row.name for row in fits if row.computes != fits[0].computes]) if difference.is_empty else None


def nearest(shapes: Shapes, table: Table, most: int) -> list[tuple[Network, Difference]]:
    """Return the networks that share the most tensors with a checkpoint, and what differs."""
    return [read_off(row, shapes) for row in table.alike(shapes, most)]


def read_off(row: Row, shapes: Shapes, num_classes: int | None = None) -> tuple[Network, Difference]:
    """Read classes, channels and image size off the tensors, and return what differs from the network all the same."""
    network = _usual(row, shapes, num_classes)
    difference = compare(shapes, row.shapes(network))
    if difference.is_empty:
        return network, difference
    size = _image_size(row, shapes)
    if size is not None:
        other = replace(network, image_size=size)
        found = _built(other, shapes)
        return (network, difference) if found is None else (other, found)
    tried = _as_built(row, shapes, num_classes)
    return (network, difference) if tried is None else (tried, Difference(len(shapes), [], [], []))


def _as_built(row: Row, shapes: Shapes, num_classes: int | None = None) -> Network | None:
    """Return the network with other channels or of another size that has just these tensors, by building some.

    Images enter some networks at several layers, or folded; positions are in tables of many forms.
    """
    network = _usual(row, shapes, num_classes)
    difference = compare(shapes, row.shapes(network))
    if difference.missing or difference.unexpected:
        return None
    tried = [replace(network, image_size=side) for side in USUAL_SIDES]
    if all(_of_other_channels(here, usual) for _, here, usual in difference.mis_shaped):
        tried = [replace(network, channels=channels) for channels in (1, 2, 4)]
    for other in tried:
        found = _built(other, shapes)
        if found is not None and found.is_empty:
            return other
    return None


def _of_other_channels(here: tuple[int, ...], usual: tuple[int, ...]) -> bool:
    """Return whether a shape is that of 1, 2 or 4 channels where 3 are usual."""
    others = [(a, b) for a, b in zip(here, usual, strict=False) if a != b]
    return len(here) == len(usual) and len(others) == 1 and 3 * others[0][0] in [n * others[0][1] for n in (1, 2, 4)]


def _built(network: Network, shapes: Shapes) -> Difference | None:
    """Return how a network differs that is built for it; None where timm cannot build it."""
    try:
        return compare(shapes, shapes_of(network))
    except (TypeError, ValueError, AssertionError, RuntimeError):  # timm's own answers to a size that it does not take
        return None


def _usual(row: Row, shapes: Shapes, num_classes: int | None = None) -> Network:
    """Return the network with a checkpoint's classes and channels, at its usual image size."""
    classes = num_classes or _classes(row, shapes)
    return Network(row.name, classes, _channels(row, shapes), entry=row.entry)


def _classes(row: Row, shapes: Shapes) -> int:
    heads = [shapes.get(f"{path}.weight", ()) for path in row.classifiers]
    return heads[0][0] if heads and heads[0] and heads[0][0] > 0 else timm_table.CLASSES


def _channels(row: Row, shapes: Shapes) -> int:
    stem = shapes.get(f"{row.stem}.weight", ())
    return stem[1] if len(stem) == 4 and stem[1] in (1, 2, 3, 4) else 3


def _image_size(row: Row, shapes: Shapes) -> int | None:
    """Return the side whose patches have as many positions as the checkpoint's table, where nothing else differs."""
    difference = compare(shapes, row.shapes(_usual(row, shapes)))
    stem = row.tensors.get(f"{row.stem}.weight", ())
    if difference.missing or difference.unexpected or len(difference.mis_shaped) != 1 or len(stem) != 4:
        return None
    name, here, usual = difference.mis_shaped[0]
    if name != POSITIONS or len(here) != 3 or (here[0], here[2]) != (usual[0], usual[2]):
        return None
    patch = stem[2]
    others = usual[1] - (row.entry.size // patch) ** 2  # class tokens and the like
    side = round(max(0, here[1] - others) ** 0.5)
    fits = others >= 0 and side > 0 and side * side == here[1] - others and side * patch <= MOST_PIXELS
    return side * patch if fits else None
