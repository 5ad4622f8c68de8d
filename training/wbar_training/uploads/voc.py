"""Annotations in Pascal VOC's XML, one file an image, as if they were COCO's.

    <annotation><size><width/><height/></size>
      <object><name/><difficult/><bndbox><xmin/><ymin/><xmax/><ymax/></bndbox></object> … </annotation>

VOC counts pixels from 1 and names the last one, so that the box is [xmin − 1, ymin − 1, xmax, ymax]. A difficult object is
taken as a crowd: it is not trained on, and counts neither for nor against. The classes are ordered by name.
"""

from collections.abc import Mapping
from xml.etree import ElementTree as ET

from wbar.errors import ContentTooLarge, InvalidArchive
from wbar_averaging.quoting import quoted, reason
from wbar_training.uploads.coco import Coco, CocoAnnotation, CocoCategory, CocoImage, checked

MOST_BYTES = 4 * 1024**2  # of one file: some tens of thousands of objects
FORBIDDEN = "it declares a document type, of which there is no need here"


class _WithoutDoctype(ET.TreeBuilder):
    """Builds the tree, and refuses what may declare entities before any is."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:  # noqa: ARG002  # as the parser calls it
        raise ValueError(FORBIDDEN)


def voc_names(files: Mapping[str, tuple[str, bytes]]) -> set[str]:
    """Return the names of the objects in files, by path (see `read_voc`)."""
    return {_text(one, "name", name) for name, data in files.values() for one in _tree(name, data).iter("object")}


def read_voc(
    split: str,
    files: Mapping[str, tuple[str, bytes]],
    images: Mapping[str, str],
    names: list[str],
    folder: str | None = None,
) -> Coco:
    """Return the annotations of one split, checked as `read_coco` does.

    files: name and content of the XML files, by their path without a suffix.
    images: the path of each image below the split, by the same.
    names: of all classes, in their order.
    folder: that the files lie in; None: that of the split.

    Raises InvalidArchive or ContentTooLarge, which name the file.
    """
    found, annotations = list[CocoImage](), list[CocoAnnotation]()
    for number, (path, (name, data)) in enumerate(sorted(files.items()), start=1):
        if path not in images:
            raise InvalidArchive(
                f"{quoted(name)} has no image: {quoted(f'{split}/images/{path}.jpg')} is expected beside it"
            )
        tree = _tree(name, data)
        size = [
            None if tree.find("size") is None else _number(tree, f"size/{side}", name) for side in ("width", "height")
        ]
        width, height = (None if not one else round(one) for one in size)  # some tools write 0 where they do not know
        found.append(CocoImage(number, images[path], width, height))
        for one in tree.iter("object"):
            left, top, right, bottom = (
                _number(one, f"bndbox/{side}", name) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            annotations.append(
                CocoAnnotation(
                    id=len(annotations) + 1,
                    image_id=number,
                    category_id=1 + names.index(_text(one, "name", name)),
                    bbox=(left - 1, top - 1, right - left + 1, bottom - top + 1),
                    iscrowd=1 if (one.findtext("difficult") or "0").strip() == "1" else 0,
                )
            )
    categories = [CocoCategory(k, name) for k, name in enumerate(names, start=1)]
    return checked(Coco(f"{folder or f'{split}/annotations'}/*.xml", found, annotations, categories))


def _tree(name: str, data: bytes) -> ET.Element:
    if len(data) > MOST_BYTES:
        raise ContentTooLarge(f"{quoted(name)} has {len(data)} bytes, over the limit of {MOST_BYTES} for one image")
    try:
        # No entity can be declared without a document type.
        return ET.fromstring(data, ET.XMLParser(target=_WithoutDoctype()))  # noqa: S314
    except (ET.ParseError, ValueError, LookupError) as error:
        raise InvalidArchive(f"{quoted(name)} is not Pascal VOC's XML: {reason(error)}") from None


def _text(element: ET.Element, path: str, name: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise InvalidArchive(f"{quoted(name)} is not Pascal VOC's XML: an object without {path}")
    return text


def _number(element: ET.Element, path: str, name: str) -> float:
    text = _text(element, path, name)
    try:
        return float(text)
    except ValueError:
        raise InvalidArchive(f"{quoted(name)} is not Pascal VOC's XML: {path} is {quoted(text)}, no number") from None
