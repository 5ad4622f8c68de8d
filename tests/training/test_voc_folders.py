"""Pascal VOC's own folders, as they come: boxes and masks of the images that its lists name, and faults by name."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_box_archives import FILES, IMAGE, coco, voc
from tests.training.test_mask_archives import png
from wbar.datasets import Task
from wbar.errors import InvalidArchive, NoImages, Rejected
from wbar_training.data.boxes import load_boxes
from wbar_training.data.masks import VOID, load_masks
from wbar_training.data.packed import Packed
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.packing import pack
from wbar_training.uploads.voc_folders import CLASSES

Files = Mapping[str, bytes | None]


def mask(*labels: int) -> bytes:
    """A palette PNG of 40 × 30 pixels: the labels side by side, the last one wide."""
    values = np.full((30, 40), labels[-1], np.uint8)
    values[:, : len(labels)] = np.array(labels, np.uint8)
    return png(values, palette=True)


BOXES = {
    "ImageSets/Main/train.txt": b"2008_1\n2008_2\n\n",
    "ImageSets/Main/val.txt": b"2008_3 \r\n",
    "ImageSets/Main/dog_train.txt": b"2008_1 1\n2008_2 -1\n",
    "ImageSets/Main/trainval.txt": b"2008_1\n2008_2\n2008_3\n",
    **{f"JPEGImages/2008_{n}.png": IMAGE for n in range(1, 5)},
    "Annotations/2008_1.xml": voc(("dog", "3 4 12 9"), ("car?", "1 1 40 30")),
    "Annotations/2008_2.xml": voc(("car", "5 5 6.5 8")),
    "Annotations/2008_3.xml": voc(("dog", "1 1 5 5")),
    "Annotations/2008_4.xml": b"no XML, and in no list",
    "SegmentationClass/2008_1.png": b"no mask, and not asked for",
}
MASKS = {
    **{name: data for name, data in BOXES.items() if name.startswith("JPEG")},
    "ImageSets/Segmentation/train.txt": b"2008_2\n2008_1\n",
    "ImageSets/Segmentation/val.txt": b"2008_4\n",
    "SegmentationClass/2008_1.png": mask(0, 255, 15),
    "SegmentationClass/2008_2.png": mask(20, 1),
    "SegmentationClass/2008_4.png": mask(0, 0),
    "SegmentationObject/2008_1.png": b"not read",
}


def packed(folder: Path, files: Files, task: Task, below: str = "") -> Packed:
    with zipfile.ZipFile(folder / "set.zip", "w") as file:
        for name, data in files.items():
            if data is not None:
                file.writestr(below + name, data)
    return pack(folder / "set.zip", folder / "out", UploadLimits(), task)


@pytest.mark.parametrize("below", ["", "VOC2012/", "VOCdevkit/VOC2012/", "mine/VOCdevkit/VOC2007/"])
def test_boxes_of_the_images_in_the_lists(tmp_path: Path, below: str) -> None:
    found = packed(tmp_path, BOXES, "detection", below)
    assert (found.classes, found.images) == (["background", "car", "dog"], {"train": 2, "val": 1})
    assert found.warnings == [
        "1 images of JPEGImages/ were left out (the first: '2008_4'): no list of ImageSets/Main/ has them"
    ]
    labels = load_boxes(tmp_path / "out", "train", None).labels
    # A difficult object is a crowd.
    torch.testing.assert_close(labels[0], torch.tensor([[2.0, 2, 3, 12, 9, 60, 0], [1, 0, 0, 40, 30, 1200, 1]]))


def test_a_leftover_folder_of_labels_hides_no_label(tmp_path: Path) -> None:
    found = packed(tmp_path, {**BOXES, "old/Annotations/2008_1.xml": b"of another time"}, "detection")
    assert found.images == {"train": 2, "val": 1}


def test_a_folder_of_that_name_in_another_layout_is_none_of_vocs(tmp_path: Path) -> None:
    files = {name.replace("images/", "JPEGImages/"): data for name, data in FILES.items()}
    documents = {"train/annotations.json": coco(), "val/annotations.json": coco("d")}
    for document in documents.values():
        for image in document["images"]:
            image["file_name"] = f"JPEGImages/{image['file_name']}"
    whole = files | {name: json.dumps(document).encode() for name, document in documents.items()}
    assert packed(tmp_path, whole, "detection").images["val"] == 1


@pytest.mark.parametrize("below", ["", "VOCdevkit/VOC2012/"])
def test_masks_of_the_images_in_the_lists_are_of_vocs_classes(tmp_path: Path, below: str) -> None:
    found = packed(tmp_path, MASKS, "segmentation", below)
    assert found.classes == list(CLASSES)
    assert (len(found.classes), found.classes[15], found.images) == (21, "person", {"train": 2, "val": 1})
    train = load_masks(tmp_path / "out", "train", None, 21)
    assert train.pair(0)[1][0, :4].tolist() == [0, VOID, 15, 15]
    assert train.pair(1)[1][0, :3].tolist() == [20, 1, 1]


def test_classes_may_be_given(tmp_path: Path) -> None:
    own = {"classes.txt": b"".join(b"kind %d\n" % n for n in range(22)), "SegmentationClass/2008_4.png": mask(21, 0)}
    assert packed(tmp_path, MASKS | own, "segmentation", "VOC2012/").classes[21] == "kind 21"
    with pytest.raises(InvalidArchive, match=r"'SegmentationClass/2008_4.png' has the labels \[21\]"):
        packed(tmp_path, MASKS | own | {"classes.txt": None}, "segmentation")


def test_without_a_list_of_held_out_images_some_are_held_out(tmp_path: Path) -> None:
    lists = {"ImageSets/Main/val.txt": None, "ImageSets/Main/train.txt": b"2008_1\n2008_2\n2008_3\n"}
    both = dict.fromkeys(
        (f"Annotations/2008_{n}.xml" for n in range(1, 4)), voc(("dog", "3 4 12 9"), ("car", "1 1 9 9"))
    )
    found = packed(tmp_path, BOXES | lists | both, "detection")
    assert found.images == {"train": 2, "val": 1}
    assert "there is no val/: 1 of the images" in " ".join(found.warnings)


@pytest.mark.parametrize(
    ("task", "change", "kind", "said"),
    [
        ("detection", {"JPEGImages/2008_2.png": None}, InvalidArchive,
         "'ImageSets/Main/train.txt', line 2: '2008_2' has no image: 'JPEGImages/2008_2.jpg' is expected"),
        ("detection", {"Annotations/2008_3.xml": None}, InvalidArchive,
         "'ImageSets/Main/val.txt', line 1: '2008_3' has an image and no annotation: 'Annotations/2008_3.xml' is expected"),
        ("segmentation", {"SegmentationClass/2008_1.png": None}, InvalidArchive,
         "'ImageSets/Segmentation/train.txt', line 2: '2008_1' has an image and no mask: 'SegmentationClass/2008_1.png' is"),
        ("segmentation", {"ImageSets/Segmentation/train.txt": None}, InvalidArchive,
         "there is 'JPEGImages/' and no 'ImageSets/Segmentation/train.txt', which lists the images to train on"),
        ("detection", {"ImageSets/Main/train.txt": None}, InvalidArchive, "no 'ImageSets/Main/train.txt'"),
        ("detection", {"ImageSets/Main/train.txt": b"2008_1\n2008_2\n2008_1\n"}, InvalidArchive,
         "'2008_1' is listed twice in one list"),
        ("detection", {"ImageSets/Main/val.txt": b"2008_1\n"}, InvalidArchive, "listed in train.txt and in val.txt"),
        ("detection", {"ImageSets/Main/train.txt": b"2008_1\n"}, NoImages, "'ImageSets/Main/train.txt' lists fewer than two"),
        ("detection", {"ImageSets/Main/train.txt": b"2008_1 1\n"}, InvalidArchive, "line 1: '2008_1 1' has no image"),
        ("detection", {"ImageSets/Main/train.txt": b"../../etc/passwd\n"}, InvalidArchive, "has no image"),
        ("detection", {"ImageSets/Main/train.txt": b"\xff\xfe"}, InvalidArchive, "cannot be read as UTF-8"),
        ("detection", {"JPEGImages/2008_1.jpg": IMAGE}, InvalidArchive, "line 1: '2008_1' has two images"),
        ("detection", {"VOC2007/JPEGImages/x.jpg": IMAGE}, InvalidArchive,
         "JPEGImages/ is there more than once, in '', 'VOC2007/'"),
        ("detection", {"Annotations/2008_1.xml": b"<annotation>"}, InvalidArchive,
         "'Annotations/2008_1.xml' is not Pascal VOC's XML"),
        ("detection", {"Annotations/2008_1.xml": voc(("dog", "3 4 52 9"))}, InvalidArchive,
         "'Annotations/*.xml': annotation 1 has the bbox [2.0, 3.0, 50.0, 6.0], which reaches out of its image "
         "'JPEGImages/2008_1.png'"),
        ("segmentation", {"SegmentationClass/2008_1.png": mask(21)}, InvalidArchive,
         "'SegmentationClass/2008_1.png' has the labels [21]"),
        ("segmentation", {"SegmentationClass/2008_1.png": png(np.zeros((40, 30), np.uint8))}, InvalidArchive,
         "'SegmentationClass/2008_1.png' has 30x40 pixels, and its image 'JPEGImages/2008_1.png' 40x30"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_by_name(
    tmp_path: Path, task: Task, change: Files, kind: type[Rejected], said: str
) -> None:
    with pytest.raises(kind) as error:
        packed(tmp_path, (BOXES if task == "detection" else MASKS) | change, task)
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()
