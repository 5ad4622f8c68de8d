"""Archives of attributes: `attributes.csv` read, and every fault of it named by its line."""

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.training.attribute_jobs import CLASSES, write_digits
from wbar.attributes import categories_of, outputs_of
from wbar.errors import ContentTooLarge, InvalidArchive, NoImages, Rejected
from wbar_training.data.packed import Packed
from wbar_training.uploads import attribute_table, samples
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.packing import pack

HEAD = "image,colour,size\n"
GOOD = (
    HEAD
    + "train/0.png,red,large\ntrain/1.png, blue ,\ntrain/2.png,,small\ntrain/3.png,red,small\n"
    + "val/4.png,blue,large\nval/5.png,red,\n"
)


def packed(table: str | None, folder: Path, val: int = 2, train: int = 4) -> Packed:
    source = write_digits(folder / "source.zip", train, val)
    with zipfile.ZipFile(source) as good, zipfile.ZipFile(folder / "a.zip", "w") as out:
        for name in good.namelist():
            if name != "attributes.csv":
                split, file = name.split("/")
                out.writestr(f"{split}/{int(file[:4])}.png", good.read(name))
        if table is not None:
            out.writestr("attributes.csv", table)
    return pack(folder / "a.zip", folder / "out", UploadLimits(), "attributes")


def labels(folder: Path, split: str) -> list[list[int]]:
    with safe_open(folder / "out", framework="pt") as file:
        found: list[list[int]] = file.get_tensor(f"{split}.labels").tolist()
    return found


def test_categories_are_outputs_end_to_end_and_what_is_not_known_is_0(tmp_path: Path) -> None:
    made = packed(GOOD, tmp_path)
    assert made.classes == ["colour=blue", "colour=red", "size=large", "size=small"]
    assert (made.task, made.images, made.warnings) == ("attributes", {"train": 4, "val": 2}, [])
    assert Packed.read(tmp_path / "out") == made
    assert labels(tmp_path, "train") == [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 1]]
    assert labels(tmp_path, "val") == [[1, 0, 1, 0], [0, 1, 0, 0]]
    assert outputs_of(made.classes) == {"colour": [0, 1], "size": [2, 3]}
    assert categories_of(made.classes) == {"colour": ["blue", "red"], "size": ["large", "small"]}
    glance = samples.look(tmp_path / "out", 4)
    assert glance.class_counts == {"train": [1, 2, 1, 2], "val": [1, 1, 1, 0]}


def test_an_attribute_that_no_held_out_image_shows_is_a_warning(tmp_path: Path) -> None:
    made = packed(GOOD.replace("val/4.png,blue,large", "val/4.png,blue,"), tmp_path)
    assert made.warnings == ["the attribute 'size' is not known of any held-out image: its accuracy will be null"]


def test_without_val_every_category_keeps_an_image_in_training(tmp_path: Path) -> None:
    rows = [f"train/{i}.png,{'rare' if i == 0 else 'ab'[i % 2]},{i % 3}\n" for i in range(20)]
    made = packed("image,kind,number\n" + "".join(rows), tmp_path, val=0, train=20)
    assert made.images == {"train": 16, "val": 4}
    assert made.held_out is not None
    assert 0 not in made.held_out
    assert torch.tensor(labels(tmp_path, "train")).sum(dim=0).min() > 0
    assert packed("image,kind,number\n" + "".join(rows), tmp_path, val=0, train=20) == made


def test_an_equals_sign_is_of_the_category(tmp_path: Path) -> None:
    made = packed(GOOD.replace("red", "a=b"), tmp_path)
    assert made.classes[0] == "colour=a=b"
    assert categories_of(made.classes)["colour"] == ["a=b", "blue"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (None, "there is no attributes.csv: an archive of task=attributes is"),
        (GOOD.replace("image,", "file,"), "must begin with `image`"),
        ("image\ntrain/0.png\n", "must begin with `image`"),
        (GOOD.replace("colour,size", "size,size"), "the column 'size' is there twice"),
        (GOOD.replace("colour,", "co=lour,"), "the column 'co=lour' has an equals sign"),
        (GOOD.replace("colour,", ","), "the column '' cannot name a class: it is blank"),
        (GOOD.replace("red", "=1+1"), "column 'colour': the category '=1\\+1' cannot name a class: it begins with ="),
        (GOOD.replace("red", "r\x07d"), "a control character"),
        (GOOD.replace("red", "r" * 250), "the attribute with its category .* has 257 characters, more than the limit of 255"),
        (GOOD.replace("train/2.png,,small", "train/2.png,,"), "line 4: no attribute of 'train/2.png' is known"),
        (GOOD.replace("val/4.png,blue,large", "val/4.png,blue"), "line 6: 1 cells for 2 attributes"),
        (GOOD.replace("val/4.png,blue,large", "val/4.png,blue,large,x"), "line 6: 3 cells for 2 attributes"),
        (GOOD.replace("large", "small"), "attribute 'size' has only 'size=small' in train/: two or more are needed"),
        (GOOD.replace(",large", ",").replace(",small", ","), "line 4: no attribute of 'train/2.png' is known"),
        (HEAD + "".join(f"train/{i}.png,{'ab'[i % 2]},\n" for i in range(4)) + "val/4.png,a,\nval/5.png,a,\n",
         "attribute 'size' has no category in train/"),
        (GOOD.replace("val/4.png,blue", "val/4.png,green"), "'colour=green' is in val/ and not in train/"),
        (GOOD + "val/5.png,red,\n", "line 8: 'val/5.png' is there twice"),
        (GOOD.replace("val/5.png,red,\n", ""), "no line for 1 images, the first 'val/5.png'"),
        (GOOD + "val/6.png,red,\n", "names 1 images that are not there, the first 'val/6.png'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, table: str | None, said: str) -> None:
    with pytest.raises(InvalidArchive, match=said):
        packed(table, tmp_path)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_held_out_is_named(tmp_path: Path) -> None:
    table = "image,kind\n" + "".join(f"train/{i}.png,kind {i}\n" for i in range(4))
    with pytest.raises(InvalidArchive, match="none of the 4 images in train/ can be held out"):
        packed(table, tmp_path, val=0)


def test_too_many_categories_are_named_by_their_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribute_table, "MOST_OUTPUTS", 3)
    with pytest.raises(
        InvalidArchive, match="2 categories of the column 'size' there are 4 outputs, more than the limit of 3"
    ):
        packed(GOOD, tmp_path)


def test_an_archive_without_images(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr("attributes.csv", HEAD)
    with pytest.raises((NoImages, Rejected)):
        pack(tmp_path / "a.zip", tmp_path / "out", UploadLimits(), "attributes")


def test_attributes_of_digits(tmp_path: Path) -> None:
    made = pack(write_digits(tmp_path / "a.zip"), tmp_path / "out", UploadLimits(), "attributes")
    assert (made.classes, made.warnings) == (CLASSES, [])


def test_too_many_attributes_are_refused_by_their_number(tmp_path: Path) -> None:
    names = ",".join(f"a{n}" for n in range(attribute_table.MOST_ATTRIBUTES + 1))
    with pytest.raises(InvalidArchive, match="201 columns, and the limit is 200 attributes"):
        packed(f"image,{names}\n", tmp_path)


def test_one_large_attribute_beside_many_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribute_table, "MOST_CELLS", 3)
    with pytest.raises(InvalidArchive, match="2 attributes, the largest with 2 categories, are 4 together"):
        packed(GOOD, tmp_path)


def test_labels_that_would_be_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribute_table, "MOST_LABELS", 23)
    with pytest.raises(ContentTooLarge, match="the labels of 6 images and 4 outputs have 24 bytes"):
        packed(GOOD, tmp_path)


def test_fewer_held_out_images_than_wanted_are_said(tmp_path: Path) -> None:
    rows = [f"train/{i}.png,{'own' + str(i) if i > 1 else 'common'}\n" for i in range(20)]
    made = packed("image,kind\n" + "".join(rows), tmp_path, val=0, train=20)
    assert made.images == {"train": 19, "val": 1}
    assert "1 of the images in train/ were held out (20 % are 4, and every category keeps an image" in made.warnings[0]
