"""Archives of regression: `targets.csv` read, and every fault of it named by its line."""

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.training.regression_jobs import TARGETS, write_digits
from wbar.errors import InvalidArchive, NoImages, Rejected
from wbar_training.data.packed import Packed
from wbar_training.uploads import samples
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.packing import pack

HEAD = "image,a,b\n"
GOOD = HEAD + "".join(f"train/{i}.png,{i},{-0.5 * i}\n" for i in range(4)) + "val/4.png,1e3,7\nval/5.png,2,3\n"


def packed(table: str | None, folder: Path, val: int = 2) -> Packed:
    source = write_digits(folder / "source.zip", 4, val)
    with zipfile.ZipFile(source) as good, zipfile.ZipFile(folder / "a.zip", "w") as out:
        for name in good.namelist():
            if name != "targets.csv":
                split, file = name.split("/")
                out.writestr(f"{split}/{int(file[:4])}.png", good.read(name))
        if table is not None:
            out.writestr("targets.csv", table)
    return pack(folder / "a.zip", folder / "out", UploadLimits(), "regression")


def test_targets_are_kept_in_their_units_with_the_training_splits_scale(tmp_path: Path) -> None:
    made = packed(GOOD, tmp_path)
    assert (made.task, made.classes, made.images) == ("regression", ["a", "b"], {"train": 4, "val": 2})
    assert made.target_mean == [1.5, -0.75]
    assert made.target_std == pytest.approx([1.25**0.5, 0.5 * 1.25**0.5])
    assert Packed.read(tmp_path / "out") == made
    with safe_open(tmp_path / "out", framework="pt") as file:
        torch.testing.assert_close(
            file.get_tensor("val.labels"), torch.tensor([[1e3, 7.0], [2.0, 3.0]], dtype=torch.float64)
        )
    glance = samples.look(tmp_path / "out", 2)
    assert glance.class_counts == {}
    assert glance.sheet.size[1] == 2 * samples.CELL


def test_one_target_and_no_val(tmp_path: Path) -> None:
    source = HEAD.replace(",b", "") + "".join(f"train/{i}.png,{i}\n" for i in range(4))
    made = packed(source, tmp_path, val=0)
    assert (made.task, made.classes, made.images) == ("regression", ["a"], {"train": 3, "val": 1})
    assert Packed.read(tmp_path / "out").task == "regression"


def test_a_constant_target_is_a_warning(tmp_path: Path) -> None:
    table = HEAD + "".join(f"train/{i}.png,{i},0.1\n" for i in range(4)) + "val/4.png,5,1\nval/5.png,5,2\n"
    made = packed(table, tmp_path)
    assert made.target_std is not None
    assert made.target_mean is not None
    assert (made.target_mean[1], made.target_std[1]) == (0.1, 1.0)
    assert any("'b' is 0.1 for all 4 images of train: there is nothing to learn" in one for one in made.warnings)
    assert any("'a' is 5 for all 2 images of val: R² is not defined" in one for one in made.warnings)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (None, "there is no targets.csv: an archive of task=regression is"),
        (GOOD.replace("image,", "file,"), "must begin with `image`"),
        (GOOD.replace("a,b", "a,a"), "the column 'a' is there twice"),
        (GOOD.replace("train/1.png,1,", "train/1.png,nan,"), "line 3, column 'a': 'nan' is no finite number"),
        (GOOD.replace("train/1.png,1,", "train/1.png,-inf,"), "'-inf' is no finite number"),
        (GOOD.replace("train/1.png,1,", "train/1.png,1e300,"), "'1e300' is no finite number up to 1e\\+30"),
        (GOOD.replace("train/1.png,1,", "train/1.png,,"), "line 3, column 'a': '' is no finite number"),
        (GOOD.replace("train/1.png,1,", "train/1.png,tall,"), "'tall' is no finite number"),
        (GOOD.replace("train/1.png,1,", "train/1.png,1_000,"), "'1_000' is no finite number"),
        (GOOD.replace("train/1.png,1,", "train/1.png,\u0661,"), "'\u0661' is no finite number"),
        (GOOD.replace("val/4.png,1e3,7", "val/4.png,1e3"), "line 6: 1 values for 2 targets"),
        (GOOD.replace("val/4.png,1e3,7", "val/4.png,1e3,7,8"), "line 6: 3 values for 2 targets"),
        (GOOD + "val/5.png,2,3\n", "line 8: 'val/5.png' is there twice"),
        (GOOD.replace("val/5.png,2,3\n", ""), "no line for 1 images, the first 'val/5.png'"),
        (GOOD + "val/6.png,2,3\n", "names 1 images that are not there, the first 'val/6.png'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, table: str | None, said: str) -> None:
    with pytest.raises(InvalidArchive, match=said):
        packed(table, tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_archive_without_images(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr("targets.csv", HEAD)
    with pytest.raises((NoImages, Rejected)):
        pack(tmp_path / "a.zip", tmp_path / "out", UploadLimits(), "regression")


def test_numbers_of_digits(tmp_path: Path) -> None:
    made = pack(write_digits(tmp_path / "a.zip"), tmp_path / "out", UploadLimits(), "regression")
    assert made.classes == list(TARGETS)
    assert made.warnings == []
