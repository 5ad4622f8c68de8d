"""Archives of images and masks: read as labels say, and refused with the file's name."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.shapes import CLASSES, write_archive
from wbar.datasets import Task
from wbar.errors import BrokenImage, ContentTooLarge, InvalidArchive, NoImages, Rejected, TooFewClasses
from wbar_training.data.masks import VOID, joined_masks, load_masks
from wbar_training.data.packed import Packed
from wbar_training.uploads import samples
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.packing import pack

TASK: Task = "segmentation"


def png(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]", palette: bool = False) -> bytes:
    file, image = io.BytesIO(), Image.fromarray(pixels)
    if palette:
        image = image.convert("P") if image.mode != "L" else image
        image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200] + [0] * (256 * 3 - 9))
    image.save(file, "PNG")
    return file.getvalue()


IMAGE = png(np.full((6, 8, 3), 90, np.uint8))
MASK = png(np.array([[0, 1] * 4] * 3 + [[2, 255] * 4] * 3, np.uint8))
PAIRS = {f"train/{kind}/{i}.png": data for i in range(3) for kind, data in (("images", IMAGE), ("masks", MASK))}
HELD_OUT = {"val/images/a.png": IMAGE, "val/masks/a.png": MASK}
NAMES = {"classes.txt": b"sky\nroad\ncar\n"}
GOOD = PAIRS | HELD_OUT | NAMES


def archive(folder: Path, files: Mapping[str, bytes | None], below: str = "") -> Path:
    path = folder / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            if data is not None:
                file.writestr(below + name, data)
    return path


def packed(folder: Path, files: Mapping[str, bytes | None], void_label: int = 255, below: str = "") -> Packed:
    return pack(archive(folder, files, below), folder / "out", UploadLimits(), TASK, void_label)


def test_images_and_masks_are_paired_by_their_names(tmp_path: Path) -> None:
    found = packed(tmp_path, GOOD)
    assert (found.task, found.classes, found.images) == (TASK, ["sky", "road", "car"], {"train": 3, "val": 1})
    assert (found.channels, found.height, found.width, found.many_sizes) == (3, 6, 8, False)
    assert found.class_pixels == [3 * 12, 3 * 12, 3 * 12]  # and as many are void
    assert Packed.read(tmp_path / "out") == found
    split = load_masks(tmp_path / "out", "train", None, 3)
    image, mask = split.pair(2)
    assert image.shape == (3, 6, 8)
    assert mask[0].tolist() == [0, 1] * 4
    assert mask[5].tolist() == [2, VOID] * 4
    assert split.labels.tolist() == [[1, 1, 1]] * 3
    # The checkpoint's own order of the classes, and an output more.
    ordered = load_masks(tmp_path / "out", "val", [3, 0, 1], 4)
    assert ordered.pair(0)[1][0].tolist() == [3, 0] * 4
    assert ordered.labels.tolist() == [[1, 1, 0, 1]]


def test_a_palette_is_a_list_of_colours_and_its_indices_are_the_labels(tmp_path: Path) -> None:
    labels = np.array([[0, 1] * 4] * 6, np.uint8)
    masks = {f"train/masks/{i}.png": png(labels, palette=True) for i in range(3)}
    packed(tmp_path, GOOD | masks, below="shapes/")
    assert load_masks(tmp_path / "out", "train", None, 3).pair(0)[1].tolist() == labels.tolist()


def test_the_labels_beside_the_void_one_are_the_lines_in_their_order(tmp_path: Path) -> None:
    masks = {f"train/masks/{i}.png": png(np.array([[0, 1, 2, 3] * 2] * 6, np.uint8)) for i in range(3)}
    held_out = {"val/masks/a.png": png(np.array([[0, 1, 2, 3] * 2] * 6, np.uint8))}
    packed(tmp_path, GOOD | masks | held_out, void_label=0)
    assert load_masks(tmp_path / "out", "train", None, 3).pair(0)[1][0].tolist() == [VOID, 0, 1, 2] * 2


def test_images_of_many_sizes_keep_theirs(tmp_path: Path) -> None:
    write_archive(tmp_path / "set.zip", 5, 4, [(20, 30), (24, 16)], void_edge=True)
    found = pack(tmp_path / "set.zip", tmp_path / "out", UploadLimits(), TASK)
    assert found.many_sizes
    split = load_masks(tmp_path / "out", "val", None, len(CLASSES))
    assert [tuple(split.pair(index)[1].shape) for index in range(4)] == [(20, 30), (24, 16), (20, 30), (24, 16)]
    assert split.sizes.tolist() == [[20, 30], [24, 16], [20, 30], [24, 16]]
    assert [part.stop - part.start for part in split.parts()] == [1, 1, 1, 1]
    assert [len(one) for one in (split, split.select(torch.tensor([2, 0])))] == [4, 2]
    assert split.select(torch.tensor([0, 2, 1])).parts() == [slice(0, 2), slice(2, 3)]
    with zipfile.ZipFile(tmp_path / "set.zip") as file:
        file.extractall(tmp_path / "folder")
        drawn = np.asarray(Image.open(io.BytesIO(file.read("val/masks/00001.png"))))
    assert split.pair(1)[1].tolist() == drawn.tolist()
    pack(tmp_path / "folder", tmp_path / "again", UploadLimits(), TASK)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "out").read_bytes()
    glance = samples.look(tmp_path / "out", len(CLASSES))
    assert glance.class_counts["train"][0] == 5  # every image has some background


def test_an_evaluation_set_without_val_is_both_splits(tmp_path: Path) -> None:
    write_archive(tmp_path / "set.zip", 3, 2, [(20, 30), (24, 16)])
    pack(tmp_path / "set.zip", tmp_path / "out", UploadLimits(), TASK)
    train, val = (load_masks(tmp_path / "out", split, None, len(CLASSES)) for split in ("train", "val"))
    both = joined_masks([train, val]).select(torch.tensor([4, 0]))
    assert torch.equal(both.pair(0)[1], val.pair(1)[1])
    assert torch.equal(both.pair(1)[0], train.pair(0)[0])
    assert both.sizes.tolist() == [[24, 16], [20, 30]]
    assert torch.equal(both.labels, torch.stack([val.labels[1], train.labels[0]]))


def test_without_val_a_fifth_is_held_out(tmp_path: Path) -> None:
    found = packed(tmp_path, PAIRS | NAMES)
    assert found.images == {"train": 2, "val": 1}
    assert "there is no val/" in found.warnings[0]


LARGER = png(np.zeros((6, 9), np.uint8))


@pytest.mark.parametrize(
    ("files", "error", "said"),
    [
        ({"classes.txt": None}, InvalidArchive, "there is no classes.txt"),
        ({"classes.txt": b"sky\n"}, TooFewClasses, "names 1 classes"),
        ({"classes.txt": b"sky\nsky\n"}, InvalidArchive, "names 'sky' twice"),
        ({"classes.txt": b"\xff\xfe\x00"}, InvalidArchive, "cannot be read as UTF-8"),
        ({"classes.txt": b"\n".join(b"c%d" % i for i in range(256))}, InvalidArchive, "names 256 classes: at most 255"),
        ({"train/masks/1.png": None}, InvalidArchive, "1 images have no mask, the first 'train/images/1.png'"),
        ({"val/images/a.png": None}, InvalidArchive, "1 masks have no image, the first 'val/masks/a.png'"),
        ({"train/images/1.webp": IMAGE}, InvalidArchive, "have one name"),
        ({"train/masks/1.png": LARGER}, InvalidArchive, "'train/masks/1.png' has 9x6 pixels, and its image .* 8x6"),
        ({"train/masks/1.png": IMAGE}, InvalidArchive, r"'train/masks/1.png' has colours \(mode RGB\)"),
        (
            {"train/masks/1.png": png(np.full((6, 8), 3, np.uint8))},
            InvalidArchive,
            r"has the labels \[3\], and classes.txt names 3 classes: the labels are 0 to 2, and 255 for void",
        ),
        ({"train/masks/1.png": png(np.full((6, 8), 255, np.uint8))}, InvalidArchive, "is void everywhere"),
        ({"train/masks/1.png": MASK[:-20]}, BrokenImage, "'train/masks/1.png' cannot be decoded"),
        ({"train/masks/1.png": None, "train/masks/1.bmp": MASK}, InvalidArchive, "a mask is a PNG"),
        (dict.fromkeys(PAIRS), NoImages, "fewer than two images"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(
    tmp_path: Path, files: dict[str, bytes | None], error: type[Rejected], said: str
) -> None:
    with pytest.raises(error, match=said):
        packed(tmp_path, GOOD | files)


def test_masks_are_not_taken_for_a_class(tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive, match="task=segmentation"):
        pack(archive(tmp_path, GOOD), tmp_path / "out", UploadLimits(), "classification", VOID)


def test_a_mask_counts_against_the_limits(tmp_path: Path) -> None:
    huge = png(np.zeros((600, 800), np.uint8))
    with pytest.raises(ContentTooLarge, match="800x600 pixels, over the limit of 1000"):
        pack(archive(tmp_path, GOOD | {"train/masks/1.png": huge}), tmp_path / "out", UploadLimits(pixels=1000), TASK)
    with pytest.raises(InvalidArchive, match="the labels are 1 to 3, and 0 for void"):
        packed(tmp_path, GOOD | {"val/masks/a.png": png(np.full((6, 8), 9, np.uint8))}, void_label=0)
