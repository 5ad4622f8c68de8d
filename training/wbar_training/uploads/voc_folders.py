"""Pascal VOC's own folders, as its archives have them: which images are trained on, and where their labels lie.

    JPEGImages/a.jpg   Annotations/a.xml         ImageSets/Main/train.txt           ImageSets/Main/val.txt           (boxes)
    JPEGImages/a.jpg   SegmentationClass/a.png   ImageSets/Segmentation/train.txt   ImageSets/Segmentation/val.txt   (masks)

also below `VOCdevkit/VOC2012/` and the like. A list has the name of an image a line, without its suffix. Only what is listed
is read: the lists in a first pass over the archive, images and labels in a second.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from wbar.errors import ContentTooLarge, InvalidArchive, NoImages
from wbar_averaging.quoting import quoted, reason
from wbar_training.uploads.dataset_archives import IMAGES, SPLITS, Read
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.member_names import is_hidden

PICTURES = "JPEGImages"
MOST_ABOVE = 3  # folders above these
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class Labels:
    """The labels that are wanted: the folder of their lists and their own, and what they are called."""

    lists: str
    folder: str
    suffix: str
    what: str


BOXES = Labels("Main", "Annotations", ".xml", "annotation")
MASKS = Labels("Segmentation", "SegmentationClass", ".png", "mask")


@dataclass(frozen=True)
class Listed:
    """A listed image: its split and name, and the members of the archive that are it and its labels."""

    split: str
    name: str
    image: str
    labels: str


@dataclass
class _Names:
    """The members of the archive that may matter, by the folder that they are below and their name without a suffix."""

    labels: Labels
    placed: Callable[[str], bool]
    roots: set[str] = field(default_factory=set)
    pictures: dict[str, list[str]] = field(default_factory=dict)
    labelled: set[str] = field(default_factory=set)

    def wanted(self, member: str) -> bool:
        """Note a member, and return whether it is a list."""
        path = PurePosixPath(member)
        if is_hidden(member) or self.placed(member):
            return False
        if path.parent.name == PICTURES and path.suffix.lower() in IMAGES and len(path.parts) <= MOST_ABOVE + 2:
            self.roots.add(_root(path, 2))
            self.pictures.setdefault(path.stem, []).append(member)
        elif path.parent.name == self.labels.folder and path.suffix.lower() == self.labels.suffix:
            self.labelled.add(member)
        return path.parts[-3:-1] == ("ImageSets", self.labels.lists) and path.name in ("train.txt", "val.txt")


def _root(path: PurePosixPath, below: int) -> str:
    """Return the folder above, with a slash; empty where there is none."""
    return "/".join([*path.parts[:-below], ""])


def voc_folders(
    read: Read, labels: Labels, limits: UploadLimits, placed: Callable[[str], bool]
) -> tuple[list[Listed], list[str]] | None:
    """Return the listed images by split and list, and warnings; None where these are not VOC's folders.

    placed: whether a member has a place in the other layout, where a folder may be called as one of VOC's.

    Raises InvalidArchive, NoImages or ContentTooLarge, which name the list and the image.
    """
    names = _Names(labels, placed)
    lists = list(read(names.wanted))
    if not names.roots:
        return None
    if len(names.roots) > 1:
        raise InvalidArchive(
            f"{PICTURES}/ is there more than once, in {', '.join(map(quoted, sorted(names.roots)[:5]))}: one dataset an upload"
        )
    root = names.roots.pop()
    below = [(PurePosixPath(member), data) for member, data in lists]
    own = {path.stem: (str(path), data) for path, data in below if _root(path, 3) == root}
    if "train" not in own:
        missing = f"{root}ImageSets/{labels.lists}/train.txt"
        raise InvalidArchive(
            f"there is {quoted(f'{root}{PICTURES}/')} and no {quoted(missing)}, which lists the images to train on"
        )
    found = list[Listed]()
    for split in (one for one in SPLITS if one in own):
        found += _listed(split, *own[split], names, root, limits)
    _check_once(found)
    if sum(one.split == "train" for one in found) < 2:
        raise NoImages(f"{quoted(own['train'][0])} lists fewer than two images")
    others = sorted(names.pictures.keys() - {one.name for one in found})
    if not others:
        return found, []
    return found, [
        f"{len(others)} images of {PICTURES}/ were left out (the first: {quoted(others[0])}): no list of "
        f"ImageSets/{labels.lists}/ has them"
    ]


def _listed(split: str, member: str, data: bytes, names: _Names, root: str, limits: UploadLimits) -> Iterator[Listed]:
    if len(data) > limits.header_bytes:
        raise ContentTooLarge(f"{quoted(member)} has {len(data)} bytes, more than the limit of {limits.header_bytes}")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidArchive(f"{quoted(member)} cannot be read as UTF-8: {reason(error)}") from None
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        where = f"{quoted(member)}, line {number}: {quoted(name)}"
        pictures = [one for one in names.pictures.get(name, ()) if one.startswith(root)]
        if not pictures:
            raise InvalidArchive(f"{where} has no image: {quoted(f'{root}{PICTURES}/{name}.jpg')} is expected")
        if len(pictures) > 1:
            raise InvalidArchive(f"{where} has two images, {', '.join(map(quoted, pictures[:5]))}: which is meant?")
        label = f"{root}{names.labels.folder}/{name}{names.labels.suffix}"
        if label not in names.labelled:
            raise InvalidArchive(f"{where} has an image and no {names.labels.what}: {quoted(label)} is expected")
        yield Listed(split, name, pictures[0], label)


def _check_once(found: Sequence[Listed]) -> None:
    seen = dict[str, str]()
    for one in found:
        if one.name in seen:
            both = "twice in one list" if seen[one.name] == one.split else "in train.txt and in val.txt"
            raise InvalidArchive(f"{quoted(one.name)} is listed {both}: an image is trained on or held out, and once")
        seen[one.name] = one.split


def contents(read: Read, names: set[str]) -> dict[str, bytes]:
    """Return the members of these names."""
    return dict(read(lambda name: name in names))
