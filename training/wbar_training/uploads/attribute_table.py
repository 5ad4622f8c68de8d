"""`attributes.csv`: several attributes of each image, one column of categories for each.

    image,colour,size
    train/1.jpg,red,large
    train/2.jpg,blue,

`image` is the path from `train/` or `val/` on, as in `labels.csv`. An empty cell is not known, and counts nowhere. The
outputs are the categories of one attribute after the other, in the order of the columns, each attribute's by name.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from wbar.attributes import SIGN, output_name, outputs_of
from wbar.datasets import Task
from wbar.errors import ContentTooLarge, InvalidArchive
from wbar_averaging.quoting import quoted
from wbar_training.uploads.label_table import LabelTable
from wbar_training.uploads.member_names import check_class_names

MOST_ATTRIBUTES = 200  # each has a line in every score
MOST_OUTPUTS = 10_000
MOST_CELLS = 50_000  # of attributes times the categories of the largest: training lays an image's outputs out like that
MOST_LABELS = 2**29  # bytes: one for each image and output
UNKNOWN = -1.0


class AttributeTable(LabelTable):
    """Takes `attributes.csv` out of an archive's members, as `LabelTable` does with `labels.csv`.

    attributes: the columns. classes: `attribute=category` for each output.
    """

    task: ClassVar[Task] = "attributes"
    name: ClassVar[str] = "attributes.csv"
    layout: ClassVar[str] = (
        "an archive of task=attributes is train/*.jpg, val/*.jpg and attributes.csv with the column `image` and one of "
        "categories for each attribute"
    )

    def read(self) -> None:
        """Parse the table. Raises InvalidArchive with the line."""
        self.attributes, body = self._parsed()
        self._check_columns()
        cells = {}
        for number, line in body:
            name = line[0].strip()
            if name in cells:
                raise InvalidArchive(f"{self.name}, line {number}: {quoted(name)} is there twice")
            cells[name] = self._cells(number, line)
        outputs: dict[tuple[int, str], float] = {}
        for column, attribute in enumerate(self.attributes):
            categories = sorted({line[column] for line in cells.values()} - {""})
            check_class_names(categories, f"{self.name}, column {quoted(attribute)}: the category")
            outputs |= {(column, category): float(len(outputs) + k) for k, category in enumerate(categories)}
            if len(outputs) > MOST_OUTPUTS:
                raise InvalidArchive(
                    f"{self.name}: with the {len(categories)} categories of the column {quoted(attribute)} there are "
                    f"{len(outputs)} outputs, more than the limit of {MOST_OUTPUTS}: leave out columns that are no attributes"
                )
        largest = max(Counter(column for column, _ in outputs).values(), default=0)
        if largest * len(self.attributes) > MOST_CELLS:
            raise InvalidArchive(
                f"{self.name}: {len(self.attributes)} attributes, the largest with {largest} categories, are "
                f"{largest * len(self.attributes)} together, more than the limit of {MOST_CELLS}: leave out columns that are "
                "no attributes"
            )
        if len(cells) * len(outputs) > MOST_LABELS:
            raise ContentTooLarge(
                f"{self.name}: the labels of {len(cells)} images and {len(outputs)} outputs have {len(cells) * len(outputs)} "
                f"bytes, more than the limit of {MOST_LABELS}: use fewer images, or leave out columns that are no attributes"
            )
        self.classes = [output_name(self.attributes[column], category) for column, category in outputs]
        check_class_names(self.classes, f"{self.name}: the attribute with its category")
        for name, line in cells.items():
            self._rows[name] = [outputs.get((column, cell), UNKNOWN) for column, cell in enumerate(line)]

    def _check_columns(self) -> None:
        if len(self.attributes) > MOST_ATTRIBUTES:
            raise InvalidArchive(
                f"{self.name}: {len(self.attributes)} columns, and the limit is {MOST_ATTRIBUTES} attributes. Columns of 0 and "
                "1 are for task=multilabel"
            )
        counts = Counter(self.attributes)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise InvalidArchive(f"{self.name}: the column {quoted(twice[0])} is there twice")
        check_class_names(self.attributes, f"{self.name}: the column")
        signed = [name for name in self.attributes if SIGN in name]
        if signed:
            raise InvalidArchive(
                f"{self.name}: the column {quoted(signed[0])} has an equals sign, which stands between an attribute and its "
                "category: rename it"
            )

    def _cells(self, number: int, line: list[str]) -> list[str]:
        cells = [cell.strip() for cell in line[1:]]
        if len(cells) != len(self.attributes):
            raise InvalidArchive(
                f"{self.name}, line {number}: {len(cells)} cells for {len(self.attributes)} attributes: one for each, empty "
                "where it is not known"
            )
        if not any(cells):
            raise InvalidArchive(
                f"{self.name}, line {number}: no attribute of {quoted(line[0].strip())} is known: leave the image out"
            )
        return cells

    def check_used(self, names: set[str]) -> None:
        """Raise InvalidArchive if a line has no image, or if there is nothing to learn about an attribute or a category.

        names: paths from `train/` or `val/` on.
        """
        super().check_used(names)
        seen = {
            split: {output for name, row in self._rows.items() if name.startswith(f"{split}/") for output in row}
            for split in ("train", "val")
        }
        outputs = outputs_of(self.classes)
        for attribute in self.attributes:
            own = outputs.get(attribute, [])
            learned = [output for output in own if output in seen["train"]]
            strange = [output for output in own if output in seen["val"] and output not in seen["train"]]
            if strange:
                numbers = re.fullmatch(r"-?[0-9.]+", self.classes[strange[0]].removeprefix(output_name(attribute, "")))
                raise InvalidArchive(
                    f"{self.name}: {quoted(self.classes[strange[0]])} is in val/ and not in train/, and cannot be learned "
                    f"({len(strange)} such categories of {quoted(attribute)})"
                    f"{': numbers are for task=regression' if numbers else ''}"
                )
            if len(learned) < 2:
                there = f"only {quoted(self.classes[learned[0]])}" if learned else "no category"
                raise InvalidArchive(
                    f"{self.name}: the attribute {quoted(attribute)} has {there} in train/: two or more are needed"
                )

    def labels(self, names: list[str]) -> Tensor:
        """Return 1 where an image has a category, (images, outputs) uint8; all 0 of an attribute that is not known.

        Raises InvalidArchive naming images without a line.
        """
        labels = torch.zeros(len(names), len(self.classes) + 1, dtype=torch.uint8)
        rows = torch.tensor(self._lines(names), dtype=torch.int64).reshape(-1, len(self.attributes))
        return labels.scatter_(1, rows.where(rows >= 0, len(self.classes)), 1)[:, :-1].contiguous()

    def held_out(self, names: list[str], fraction: float, seed: int) -> list[int]:
        """Draw images to hold out, `fraction` of them; every category keeps one in training. Returns sorted indices.

        Raises InvalidArchive where none can be spared.
        """
        rows = [[output for output in row if output >= 0] for row in self._lines(names)]
        left = Counter(output for row in rows for output in row)
        order, drawn = list(range(len(rows))), list[int]()
        random.Random(seed).shuffle(order)
        for index in order:
            if len(drawn) < max(1, round(fraction * len(rows))) and all(left[output] > 1 for output in rows[index]):
                left.subtract(rows[index])
                drawn.append(index)
        if not drawn:
            raise InvalidArchive(
                f"{self.name}: there is no val/, and none of the {len(rows)} images in train/ can be held out without a "
                "category losing its only one: add images, or a val/"
            )
        return sorted(drawn)


def warnings_about_attributes(classes: Sequence[str], val: Tensor) -> list[str]:
    """Return a warning for each attribute that is not known of any held-out image. val: (N, outputs) of 0 and 1."""
    known = val.any(dim=0).tolist()
    return [
        f"the attribute {quoted(attribute)} is not known of any held-out image: its accuracy will be null"
        for attribute, outputs in outputs_of(classes).items()
        if not any(known[output] for output in outputs)
    ]
