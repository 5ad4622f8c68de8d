"""`labels.csv`: the labels of each image, where it may have several.

Either one column per class, 0 or 1:      or the names of an image's labels, separated by `|`, `;` or spaces:

    image,cat,dog                              image,labels
    train/1.jpg,1,0                            train/1.jpg,cat
    train/2.jpg,1,1                            train/2.jpg,cat|dog
    train/3.jpg,0,0                            train/3.jpg,

`image` is the path from `train/` or `val/` on.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import ClassVar

import torch
from torch import Tensor

from wbar.datasets import Task
from wbar.errors import ContentTooLarge, InvalidArchive, TooFewClasses
from wbar_averaging.quoting import quoted, reason
from wbar_training.uploads.member_names import check_class_names, is_hidden

NAME = "labels.csv"


class LabelTable:
    """Takes `labels.csv` out of an archive's members while they pass by, and reads it when all have passed.

    layout: of an archive that has such a table, in words.
    """

    task: ClassVar[Task] = "multilabel"
    name: ClassVar[str] = NAME
    layout: ClassVar[str] = (
        "a multilabel archive is train/*.jpg, val/*.jpg and labels.csv with the columns `image` and one of 0 and 1 for each "
        "class (or `image,labels`)"
    )

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._data: bytes | None = None
        self.classes: list[str] = []
        self._rows: dict[str, list[float]] = {}

    def takes(self, name: str) -> bool:
        """Return whether a file is the table, by its name with plain slashes."""
        path = PurePosixPath(name)
        return path.name == self.name and len(path.parts) <= 2 and not is_hidden(name)

    def taken_from(self, members: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        """Yield the other members, and keep `labels.csv`. Raises ContentTooLarge for a larger one than the limit."""
        for name, data in members:
            if not self.takes(name):
                yield name, data
            elif len(data) > self._max_bytes:
                raise ContentTooLarge(f"{self.name} has {len(data)} bytes, more than the limit of {self._max_bytes}")
            elif self._data is not None:
                raise InvalidArchive(f"{self.name} is there twice")
            else:
                self._data = data

    def _parsed(self) -> tuple[list[str], list[tuple[int, list[str]]]]:
        """Return the names after `image` in the first line, and the other lines with their numbers, without empty ones."""
        if self._data is None:
            raise InvalidArchive(f"there is no {self.name}: {self.layout}")
        try:
            lines = list(csv.reader(io.StringIO(self._data.decode("utf-8-sig"))))
        except (UnicodeDecodeError, csv.Error) as error:
            raise InvalidArchive(f"{self.name} cannot be read as UTF-8 CSV: {reason(error)}") from None
        header = [cell.strip() for cell in lines[0]] if lines else []
        if len(header) < 2 or header[0] != "image":
            raise InvalidArchive(
                f"{self.name}: the first line must begin with `image` and name the classes, not {_some(header, 5)}"
            )
        body = [(number, line) for number, line in enumerate(lines[1:], start=2) if any(cell.strip() for cell in line)]
        return header[1:], body

    def read(self) -> None:
        """Parse the table. Raises InvalidArchive with the line, and TooFewClasses."""
        header, body = self._parsed()
        named = header == ["labels"]
        labels_of = {number: self._names(number, line) for number, line in body} if named else {}
        self.classes = sorted({name for names in labels_of.values() for name in names}) if named else header
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise TooFewClasses(
                f"{self.name} names {len(set(self.classes))} different classes in {len(self.classes)}: two or more"
            )
        check_class_names(self.classes, f"{self.name}: the column or label")
        for number, line in body:
            values = (
                [float(name in labels_of[number]) for name in self.classes] if named else self._numbers(number, line)
            )
            self._rows[self._new_name(number, line)] = values

    def _names(self, number: int, line: list[str]) -> set[str]:
        """Return the labels in a line. Raises InvalidArchive where a comma parts them."""
        if any(cell.strip() for cell in line[2:]):
            raise InvalidArchive(
                f"{self.name}, line {number}: {len(line)} cells {_some(line, 8)} where `image,labels` has two: write |, ; or a "
                "space between labels"
            )
        return {name for name in re.split(r"[|;\s]+", line[1].strip() if len(line) > 1 else "") if name}

    def _new_name(self, number: int, line: list[str]) -> str:
        """Return the image that a line is of. Raises InvalidArchive where an earlier one is."""
        name = line[0].strip()
        if name in self._rows:
            raise InvalidArchive(f"{self.name}, line {number}: {quoted(name)} is there twice")
        return name

    def _numbers(self, number: int, line: list[str]) -> list[float]:
        cells = [cell.strip() for cell in line[1:]]
        if len(cells) != len(self.classes) or not set(cells) <= {"0", "1"}:
            raise InvalidArchive(
                f"{self.name}, line {number}: {len(cells)} values {_some(cells, 8)} for {len(self.classes)} classes: "
                "one 0 or 1 for each"
            )
        return [float(cell) for cell in cells]

    def labels(self, names: list[str]) -> Tensor:
        """Return the labels of these images, (images, classes) uint8. Raises InvalidArchive naming missing ones.

        names: paths from `train/` or `val/` on.
        """
        return self._values(names).to(torch.uint8)

    def _values(self, names: list[str]) -> Tensor:
        """Return the lines of these images, (images, columns) float64."""
        return torch.tensor(self._lines(names), dtype=torch.float64).reshape(-1, len(self.classes))

    def _lines(self, names: list[str]) -> list[list[float]]:
        """Return the numbers in the lines of these images. Raises InvalidArchive naming images without one."""
        missing = [name for name in names if name not in self._rows]
        if missing:
            raise InvalidArchive(f"{self.name} has no line for {len(missing)} images, the first {quoted(missing[0])}")
        return [self._rows[name] for name in names]

    def check_used(self, names: set[str]) -> None:
        """Raise InvalidArchive if a line has no image. names: paths from `train/` or `val/` on."""
        unused = [name for name in self._rows if name not in names]
        if unused:
            raise InvalidArchive(
                f"{self.name} names {len(unused)} images that are not there, the first {quoted(unused[0])}"
            )


def _some(cells: list[str], most: int) -> str:
    return f"[{', '.join(map(quoted, cells[:most]))}]"
