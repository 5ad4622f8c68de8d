"""Archives of images and boxes in COCO's JSON: read as it says, and refused with the file's name and the annotation's id."""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.shapes import CLASSES, write_boxes_archive
from tests.training.test_mask_archives import png
from wbar.errors import BrokenImage, ContentTooLarge, InvalidArchive, NoImages, Rejected, TooFewClasses
from wbar_training.data.boxes import joined_boxes, load_boxes
from wbar_training.data.packed import Packed
from wbar_training.uploads import samples
from wbar_training.uploads.coco import MOST_BYTES, read_coco
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.packing import pack

IMAGE = png(np.full((30, 40, 3), 90, np.uint8))
FILES = {f"train/images/{name}.png": IMAGE for name in "abc"} | {"val/images/d.png": IMAGE}
Document = dict[str, Any]


def coco(names: str = "abc") -> Document:
    """Annotations of images 40 pixels wide and 30 high: a car and a crowd on the first, a dog on the second."""
    return {
        "info": {"year": 2026},
        "licenses": [],
        "images": [
            {"id": 7 + i, "file_name": f"{n}.png", "width": 40, "height": 30, "license": 1} for i, n in enumerate(names)
        ],
        "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [2, 3, 10.5, 6], "area": 40.0, "iscrowd": 0,
             "segmentation": [[2, 3, 9, 3, 9, 8]]},
            {"id": 2, "image_id": 7, "category_id": 18, "bbox": [20, 0, 20.4, 30], "iscrowd": 1},
            {"id": 3, "image_id": 7 + len(names) // 2, "category_id": 18, "bbox": [0, 0, 5, 5]},
        ],
    }  # fmt: skip


def packed(folder: Path, files: Mapping[str, bytes | Document | None], below: str = "") -> Packed:
    with zipfile.ZipFile(folder / "set.zip", "w") as file:
        for name, data in files.items():
            if data is not None:
                file.writestr(below + name, data if isinstance(data, bytes) else json.dumps(data))
    return pack(folder / "set.zip", folder / "out", UploadLimits(), "detection")


GOOD = {**FILES, "train/annotations.json": coco(), "val/annotations.json": coco("d")}


def test_boxes_are_read_with_their_images(tmp_path: Path) -> None:
    found = packed(tmp_path, GOOD)
    assert (found.task, found.classes) == ("detection", ["background", "car", "dog"])  # by their ids, 3 and 18
    assert (found.images, found.masks) == ({"train": 3, "val": 1}, False)
    assert found.warnings == [
        "2 of 4 annotations have no `segmentation` (the first: annotation 3 of train/annotations.json), so that the masks of "
        "the others were left out: a Mask R-CNN needs one for each box"
    ]
    assert Packed.read(tmp_path / "out") == found
    train = load_boxes(tmp_path / "out", "train", None)
    car, crowd = [1, 2, 3, 12.5, 9, 40, 0], [2, 20, 0, 40, 30, 20.4 * 30, 1]  # what rounding put outside is cut off
    torch.testing.assert_close(train.labels[0], torch.tensor([car, crowd]))
    assert train.labels[1].tolist() == [[2, 0, 0, 5, 5, 25, 0], [-1, 0, 0, 0, 0, 0, 0]]
    assert train.labels[2, :, 0].tolist() == [-1, -1]  # without annotations: background
    ordered = load_boxes(tmp_path / "out", "train", [0, 4, 2])
    assert ordered.labels[0, :, 0].tolist() == [4, 2]
    both = joined_boxes([load_boxes(tmp_path / "out", "val", None), train])
    assert (len(both), both.image(3).shape) == (4, (3, 30, 40))
    assert torch.equal(both.labels[1:, :2], train.labels)
    glance = samples.look(tmp_path / "out", 3)
    assert glance.class_counts == {"train": [1, 1, 2], "val": [0, 1, 1]}


@pytest.mark.parametrize(
    "names",
    [
        lambda name: name.replace("images/", ""),
        lambda name: f"set/{name}",
        lambda name: name.replace("train/images", "train2017").replace("train/annotations", "annotations/instances_train2017")
        .replace("val/images", "val2017").replace("val/annotations", "annotations/instances_val2017"),
        lambda name: name.replace("annotations.json", "_annotations.coco.json"),
    ],
)  # fmt: skip
def test_the_usual_places_of_files(tmp_path: Path, names: Callable[[str], str]) -> None:
    found = packed(tmp_path, {names(name): data for name, data in GOOD.items()})
    assert found.images == {"train": 3, "val": 1}


def test_images_are_held_out_and_others_left_out_with_a_warning(tmp_path: Path) -> None:
    write_boxes_archive(tmp_path / "shapes.zip", 10, 0, [(32, 40), (24, 24)])
    with zipfile.ZipFile(tmp_path / "shapes.zip") as good:
        files = {name: good.read(name) for name in good.namelist() if name.startswith("train/")}
    found = packed(tmp_path, files | {"train/images/odd.png": IMAGE})
    assert (found.classes, found.many_sizes, found.images) == (list(CLASSES), True, {"train": 8, "val": 2})
    assert "1 images of train/ were left out (the first: 'odd.png')" in found.warnings[0]
    assert "2 of the images in train/ were held out" in found.warnings[1]


def changed(change: Callable[[Document], object]) -> Document:
    document = coco()
    change(document)
    return document


@pytest.mark.parametrize(
    ("document", "kind", "said"),
    [
        (changed(lambda d: d["annotations"][0].update(bbox=[30, 3, 20, 6])), InvalidArchive,
         "'train/annotations.json': annotation 1 has the bbox [30.0, 3.0, 20.0, 6.0], which reaches out of its image "
         "'train/images/a.png' of 40x30 pixels"),
        (changed(lambda d: d["annotations"][2].update(bbox=[-9, 3, 20, 6])), InvalidArchive, "annotation 3 has the bbox"),
        (changed(lambda d: d["annotations"][0].update(bbox=[12, 9, -10, 6])), InvalidArchive, "is empty or inverted"),
        (changed(lambda d: d["annotations"][0].update(bbox=[12, 9, 4, 0])), InvalidArchive, "is empty or inverted"),
        (changed(lambda d: d["annotations"][0].update(bbox=[12, 9, 4])), InvalidArchive, "annotations.0.bbox"),
        (changed(lambda d: d["annotations"][0].update(bbox=[12, 9, 4, float("nan")])), InvalidArchive, "must be finite"),
        (changed(lambda d: d["annotations"][0].update(area=float("inf"))), InvalidArchive, "the area inf"),
        (changed(lambda d: d["annotations"][0].update(iscrowd=2)), InvalidArchive, "annotations.0.iscrowd"),
        (changed(lambda d: d["annotations"][0].update(bbox=["12", 9, 4, 4])), InvalidArchive, "annotations.0.bbox.0"),
        (changed(lambda d: d["annotations"][0].update(bbox=[True, 9, 4, 4])), InvalidArchive, "annotations.0.bbox.0"),
        (changed(lambda d: d["annotations"][0].update(category_id=4)), InvalidArchive,
         "annotation 1 is of category 4, which `categories` does not have: its ids are 3, 18"),
        (changed(lambda d: d["annotations"][0].update(image_id=99)), InvalidArchive, "annotation 1 is of image 99"),
        (changed(lambda d: d["annotations"][1].update(id=1)), InvalidArchive, "two annotations have the id 1"),
        (changed(lambda d: d["images"][1].update(id=7)), InvalidArchive, "two images have the id 7"),
        (changed(lambda d: d["images"][1].update(file_name="a.png")), InvalidArchive, "two images have the file_name 'a.png'"),
        (changed(lambda d: d["images"][1].update(file_name="z.png")), InvalidArchive,
         "lists 1 images that the archive does not have, the first 'z.png': 'train/images/z.png' is expected"),
        (changed(lambda d: d["images"][1].update(file_name="../b.png")), InvalidArchive, "the first '../b.png'"),
        (changed(lambda d: d["images"][1].update(width=30, height=40)), InvalidArchive,
         "'train/images/b.png' has 40x30 pixels, and 'train/annotations.json' says 30x40"),
        (changed(lambda d: d["categories"].append({"id": 5, "name": "cat"})), InvalidArchive,
         "1 categories have no box in the training images, the first 'cat'"),
        (changed(lambda d: d["annotations"].pop(0)), InvalidArchive, "the first 'car'"),
        (changed(lambda d: d["annotations"][0].update(iscrowd=1)), InvalidArchive, "the first 'car'"),
        (changed(lambda d: d["categories"].append({"id": 3, "name": "cat"})), InvalidArchive, "two categories have the id 3"),
        (changed(lambda d: d["categories"].append({"id": 5, "name": "car"})), InvalidArchive, "have the name 'car'"),
        (changed(lambda d: d["categories"].append({"id": 0, "name": "background"})), InvalidArchive, "class 0"),
        (changed(lambda d: d["categories"].append({"id": 5, "name": "=1+1"})), InvalidArchive, "cannot name a class"),
        (changed(lambda d: d.update(categories=[], annotations=[])), TooFewClasses, "has no categories"),
        (changed(lambda d: d.pop("annotations")), InvalidArchive, "is not COCO's JSON: annotations: Field required"),
        (changed(lambda d: d.update(images=[], annotations=[])), NoImages, "lists 0 images"),
        (b"[1, 2]", InvalidArchive, "is not COCO's JSON"),
        (b"\xff\xfe{}", InvalidArchive, "is not COCO's JSON: Invalid JSON"),
        (b'{"images": ' + b"[" * 100_000, InvalidArchive, "is not COCO's JSON: it is nested too deeply"),
        (b'{"images": [', InvalidArchive, "is not COCO's JSON: Invalid JSON"),
        (None, InvalidArchive, "train/ has 3 images and no annotations"),
    ],
)  # fmt: skip
def test_bad_annotations_are_refused_by_name(
    tmp_path: Path, document: Document | bytes | None, kind: type[Rejected], said: str
) -> None:
    with pytest.raises(kind) as error:
        packed(tmp_path, GOOD | {"train/annotations.json": document})
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("files", "kind", "said"),
    [
        ({"train/images/b.png": IMAGE[:60]}, BrokenImage, "'train/images/b.png' cannot be decoded"),
        ({"train/more.json": coco()}, InvalidArchive, "are both annotations of train/"),
        ({"train/a.png": IMAGE}, InvalidArchive, "'train/a.png' and 'train/images/a.png' are both 'a.png' of train/"),
        ({"val/annotations.json": changed(lambda d: d["categories"][0].update(name="wolf"))}, InvalidArchive, "lists 3"),
        ({"val/annotations.json": {**coco("d"), "categories": [{"id": 3, "name": "car"}, {"id": 18, "name": "wolf"}]}},
         InvalidArchive, "'val/annotations.json' has categories that 'train/annotations.json' has not: 'wolf'"),
        ({"val/annotations.json": {**coco("d"), "annotations": []}}, InvalidArchive,
         "the 1 held-out images have no box: nothing could be scored"),
        ({"val/annotations.json": {**coco("d"), "annotations": [{**one, "iscrowd": 1} for one in coco("d")["annotations"]]}},
         InvalidArchive, "the 1 held-out images have boxes of crowds alone"),
        (dict.fromkeys(GOOD) | {"train/images/a.png": IMAGE}, NoImages, "fewer than two images in train/"),
    ],
)  # fmt: skip
def test_bad_archives_are_refused_by_name(
    tmp_path: Path, files: Mapping[str, bytes | None], kind: type[Rejected], said: str
) -> None:
    with pytest.raises(kind) as error:
        packed(tmp_path, GOOD | files)
    assert said in str(error.value)


def test_annotations_are_bounded() -> None:
    with pytest.raises(
        ContentTooLarge, match=r"leave out what is not read of it \(`keypoints`, and `segmentation` unless"
    ):
        read_coco("train/annotations.json", bytes(MOST_BYTES + 1))


# Pascal VOC's XML.


def voc(
    *objects: tuple[str, str], size: str = "<size><width>40</width><height>30</height><depth>3</depth></size>"
) -> bytes:
    """One image's annotations. objects: a name, and the box as `xmin ymin xmax ymax`."""
    body = ""
    for name, corners in objects:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), corners.split(), strict=True)
        inner = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        body += f"<object><name>{name.removesuffix('?')}</name><difficult>{int(name.endswith('?'))}</difficult>"
        body += f"<bndbox>{inner}</bndbox></object>"
    return f"<annotation><filename>other.jpg</filename>{size}{body}</annotation>".encode()


VOC = {
    **FILES,
    "train/annotations/a.xml": voc(("dog", "3 4 12 9"), ("car?", "1 1 40 30")),
    "train/annotations/b.xml": voc(("car", "5 5 6.5 8"), size=""),
    "train/annotations/c.xml": voc(),
    "val/annotations/d.xml": voc(("dog", "1 1 5 5")),
}


@pytest.mark.parametrize(
    "names", [lambda name: name, lambda name: name.replace("annotations/", "").replace("images/", "")]
)
def test_pascals_boxes_count_from_one(tmp_path: Path, names: Callable[[str], str]) -> None:
    found = packed(tmp_path, {names(name): data for name, data in VOC.items()})
    assert (found.classes, found.images, found.warnings) == (["background", "car", "dog"], {"train": 3, "val": 1}, [])
    labels = load_boxes(tmp_path / "out", "train", None).labels
    torch.testing.assert_close(labels[0], torch.tensor([[2.0, 2, 3, 12, 9, 60, 0], [1, 0, 0, 40, 30, 1200, 1]]))
    torch.testing.assert_close(labels[1, 0], torch.tensor([1.0, 4, 4, 6.5, 8, 10, 0]))
    assert labels[2, :, 0].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (voc(("dog", "30 4 52 9")), "annotation 1 has the bbox [29.0, 3.0, 23.0, 6.0], which reaches out of its image"),
        (voc(("dog", "12 4 3 9")), "is empty or inverted"),
        (voc(("dog", "1 4 x 9")), "'train/annotations/a.xml' is not Pascal VOC's XML: bndbox/xmax is 'x', no number"),
        (voc(("", "1 4 3 9")), "an object without name"),
        (voc(("cat", "1 4 3 nan")), "must be finite"),
        (voc(size="<size><width>30</width><height>40</height></size>"), "says 30x40"),
        (b"<annotation><object></annotation>", "'train/annotations/a.xml' is not Pascal VOC's XML: mismatched tag"),
        (b'<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation>&b;</annotation>', "it declares a document type"),
        (b"<a>" * 200_000, "is not Pascal VOC's XML"),
    ],
)
def test_bad_xml_is_refused_by_name(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(InvalidArchive) as error:
        packed(tmp_path, VOC | {"train/annotations/a.xml": data})
    assert said in str(error.value)


def test_xml_and_images_belong_together(tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive, match=r"'train/annotations/z.xml' has no image"):
        packed(tmp_path, VOC | {"train/annotations/z.xml": voc()})
    found = packed(tmp_path, VOC | {"train/images/z.png": IMAGE})
    assert "1 images of train/ were left out (the first: 'z.png')" in found.warnings[0]
    with pytest.raises(ContentTooLarge, match="over the limit of 4194304 for one image"):
        packed(tmp_path, VOC | {"train/annotations/a.xml": bytes(2**22 + 1)})
