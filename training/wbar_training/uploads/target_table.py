"""`targets.csv`: the numbers that a regression predicts of each image, one column for each.

    image,age,height
    train/1.jpg,31,1.74
    train/2.jpg,7.5,1.21

`image` is the path from `train/` or `val/` on, as in `labels.csv`. Numbers are in the user's own units, with a point.
"""

from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor

from wbar.datasets import Task
from wbar.errors import InvalidArchive
from wbar_averaging.quoting import quoted
from wbar_training.uploads.label_table import LabelTable
from wbar_training.uploads.member_names import check_class_names

LARGEST = 1e30  # squares of it, and their sums, are numbers


class TargetTable(LabelTable):
    """Takes `targets.csv` out of an archive's members, as `LabelTable` does with `labels.csv`. classes: the targets."""

    task: ClassVar[Task] = "regression"
    name: ClassVar[str] = "targets.csv"
    layout: ClassVar[str] = (
        "an archive of task=regression is train/*.jpg, val/*.jpg and targets.csv with the column `image` and one of numbers "
        "for each target"
    )

    def read(self) -> None:
        """Parse the table. Raises InvalidArchive with the line."""
        self.classes, body = self._parsed()
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise InvalidArchive(f"{self.name}: the column {quoted(twice[0])} is there twice")
        check_class_names(self.classes, f"{self.name}: the column")
        for number, line in body:
            name = self._new_name(number, line)
            self._rows[name] = self._numbers(number, line)

    def _numbers(self, number: int, line: list[str]) -> list[float]:
        cells = [cell.strip() for cell in line[1:]]
        if len(cells) != len(self.classes):
            raise InvalidArchive(
                f"{self.name}, line {number}: {len(cells)} values for {len(self.classes)} targets: one number for each"
            )
        return [self._number(number, target, cell) for target, cell in zip(self.classes, cells, strict=True)]

    def _number(self, number: int, target: str, cell: str) -> float:
        try:
            value = float(cell)
        except ValueError:
            value = float("nan")
        if "_" in cell or not cell.isascii():  # 1_000 and other alphabets' digits, which Python reads as numbers
            value = float("nan")
        if not isfinite(value) or abs(value) > LARGEST:
            raise InvalidArchive(
                f"{self.name}, line {number}, column {quoted(target)}: {quoted(cell)} is no finite number up to {LARGEST:g}; "
                "leave out images whose targets are not known"
            )
        return value

    def labels(self, names: list[str]) -> Tensor:
        """Return the targets of these images, (images, targets) float64. Raises InvalidArchive naming missing ones."""
        return self._values(names)


def scale_of(targets: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each target, (N, targets) float64; a constant one has the deviation 1."""
    constant = targets.min(dim=0).values == targets.max(dim=0).values
    mean = torch.where(constant, targets[0], targets.mean(dim=0))
    std = torch.where(constant, torch.ones_like(mean), targets.std(dim=0, unbiased=False))
    return mean.tolist(), std.tolist()


def warnings_about_targets(names: list[str], train: Tensor, val: Tensor) -> list[str]:
    """Return a warning for each target that is one number in a whole split. train, val: (N, targets)."""
    return [
        f"the target {quoted(name)} is {values[0].item():g} for all {len(values)} images of {split}: "
        + ("there is nothing to learn" if split == "train" else "R² is not defined and will be null")
        for split, targets in (("train", train), ("val", val))
        for name, values in zip(names, targets.T, strict=True)
        if bool((values == values[0]).all())
    ]
