"""The mean of several checkpoints' tensors, given out in pieces that are small enough to stay in a core's own cache.

Where the sum is wider than what is summed (float64 over float32), adding k equal numbers and dividing by k gives the number
back. Where it is not, x₀ − Σ wᵢ(x₀ − xᵢ) / Σ wᵢ does, and that is what is summed there.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wbar_averaging import float_formats
from wbar_averaging.checkpoint_file import Checkpoint, Entry, OpenFiles, open_checkpoint
from wbar_averaging.float_formats import Array
from wbar_averaging.safetensors_file import SIZES

# Numbers at a time: all buffers are 5 MiB, the sum and one file's piece 1.5. On 8 × 346 MB, 32 to 256 thousand differ little.
PIECE = 131_072
LISTED = 20
INTEGER, BOOLEAN, FLOAT = "integer", "boolean", "float"

Progress = Callable[[int, int], None]


class Mismatch(ValueError):
    """The checkpoints do not hold the same tensors; the message lists how, in up to LISTED lines."""


class NotFinite(ValueError):
    """A value is NaN or infinite, in a checkpoint or in the mean; the message names the tensor and the file."""


@dataclass(frozen=True)
class Plan:
    """The inputs of a mean: checkpoints, and their tensors numbered as in the first one, with the mean's dtypes and shapes."""

    checkpoints: list[Checkpoint]
    names: list[str]
    dtypes: list[str]
    shapes: list[tuple[int, ...]]
    metadata: dict[str, str]

    def elements(self, index: int) -> int:
        """Return how many numbers tensor `index` has."""
        return math.prod(self.shapes[index])

    def bytes(self, index: int) -> int:
        """Return how many bytes tensor `index` takes in the mean's file."""
        return self.elements(index) * SIZES[self.dtypes[index]]

    def read_bytes(self, index: int, elements: int) -> int:
        """Return how many bytes are read, over all checkpoints, for `elements` numbers of tensor `index`."""
        used = self.checkpoints if _kind(self.dtypes[index]) == FLOAT else self.checkpoints[-1:]
        return elements * sum(SIZES[checkpoint.dtypes[index]] for checkpoint in used)


def make_plan(paths: Sequence[str | os.PathLike[str]], files: OpenFiles, copies: Path, chosen: str | None) -> Plan:
    """Open and compare the checkpoints. Of all but the first, only dtypes and places are kept.

    copies: a folder for copies of PyTorch files, see `open_checkpoint`. chosen: the dtype of all floating-point tensors of
    the mean; None leaves each as it is in the first checkpoint.

    Raises Mismatch, and what `open_checkpoint` does.
    """
    first = open_checkpoint(paths[0], files, copies)
    entries, names, checkpoints, metadata = first.entries, list(first.entries), [first], dict(first.metadata)
    _refuse(
        [f"{name}: {e.dtype} in {first.label} cannot be averaged" for name, e in entries.items() if not _kind(e.dtype)]
    )
    for path in paths[1:]:
        checkpoint = open_checkpoint(path, files, copies)
        _refuse(_differences(first.label, entries, checkpoint))
        metadata = {key: value for key, value in metadata.items() if key in checkpoint.metadata}
        checkpoint.keep(names)
        checkpoints.append(checkpoint)
    first.keep(names)
    pairs = zip(first.dtypes, checkpoints[-1].dtypes, strict=True)
    dtypes = [(chosen or begin) if _kind(begin) == FLOAT else end for begin, end in pairs]
    metadata["wbar.averaged"] = str(len(checkpoints))
    return Plan(checkpoints, names, dtypes, [entries[name].shape for name in names], metadata)


def _differences(label: str, entries: dict[str, Entry], other: Checkpoint) -> list[str]:
    lines = []
    for name in sorted(entries.keys() | other.entries.keys()):
        here, there = entries.get(name), other.entries.get(name)
        same = here and there and here.shape == there.shape and _kind(here.dtype) == _kind(there.dtype)
        if not same:
            lines.append(f"{name}: {_shown(here)} in {label}, {_shown(there)} in {other.label}")
    return lines


def _kind(dtype: str) -> str:
    """What can be averaged or copied together; empty for the 8-bit floating-point formats, which cannot."""
    if dtype.startswith(("U", "I")):
        return INTEGER
    return BOOLEAN if dtype == "BOOL" else FLOAT if dtype in float_formats.SIZES else ""


def _shown(entry: Entry | None) -> str:
    return f"{entry.dtype} {list(entry.shape)}" if entry else "missing"


def _refuse(lines: list[str]) -> None:
    if lines:
        more = [f"… and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        raise Mismatch("\n".join(lines[:LISTED] + more))


class Mean:
    """The mean of any piece of any tensor, in buffers that are made once: new ones would cost a page fault for every page.

    shares: the weights, of sum 1; None for equal ones. wide: the dtype to sum in. progress: called after every piece with the
    bytes read so far and in all.
    """

    def __init__(
        self, plan: Plan, shares: list[float] | None, wide: "np.dtype[Any]", progress: Progress | None
    ) -> None:
        self._plan, self._shares, self._wide = plan, shares, wide
        self._progress, self._done = progress, 0
        self._all = sum(plan.read_bytes(index, plan.elements(index)) for index in range(len(plan.names)))
        self._raw = np.empty(PIECE * 8, np.uint8)
        self._sum, self._term, self._first = (np.empty(PIECE, np.float64) for _ in range(3))
        self._scratch = np.empty(PIECE, np.float32)

    def pieces(self, index: int) -> Iterator[memoryview]:
        """Yield the tensor's mean as bytes, in order. Each piece overwrites the one before. Raises NotFinite."""
        elements, averaged = self._plan.elements(index), _kind(self._plan.dtypes[index]) == FLOAT
        for begin in range(0, elements, PIECE):
            count = min(PIECE, elements - begin)
            yield (self._average if averaged else self._copy)(index, begin, count)
            if self._progress:
                self._done += self._plan.read_bytes(index, count)
                self._progress(self._done, self._all)

    def _copy(self, index: int, begin: int, count: int) -> memoryview:
        last = self._plan.checkpoints[-1]
        size = SIZES[last.dtypes[index]]
        last.read(index, begin * size, self._raw[: count * size].data)
        return self._raw[: count * size].data

    def _average(self, index: int, begin: int, count: int) -> memoryview:
        dtype = self._plan.dtypes[index]
        widest = max(float_formats.SIZES[checkpoint.dtypes[index]] for checkpoint in self._plan.checkpoints)
        wide = self._wide if max(widest, float_formats.SIZES[dtype]) <= self._wide.itemsize else np.dtype(np.float64)
        total = self._sum.view(wide)[:count]
        if widest < wide.itemsize:
            self._add(index, begin, total)
        else:
            self._add_differences(index, begin, total)
        raw = self._raw[: count * float_formats.SIZES[dtype]]
        whole = float_formats.all_finite(total)
        if whole:
            float_formats.narrow(total, dtype, raw, self._term)
        if not whole or not float_formats.finite(raw, dtype):
            raise NotFinite(self._culprit(index, begin, count))
        return raw.data

    def _add(self, index: int, begin: int, total: Array) -> None:
        term = self._term.view(total.dtype)[: len(total)]
        for number, share in enumerate(self._shares or [1.0] * len(self._plan.checkpoints)):
            values = self._read(number, index, begin, len(total))
            if self._shares:
                values = np.multiply(values, share, out=term, dtype=total.dtype)
            if number == 0:
                np.copyto(total, values)
            else:
                np.add(total, values, out=total)
        if not self._shares:
            np.divide(total, len(self._plan.checkpoints), out=total)

    def _add_differences(self, index: int, begin: int, total: Array) -> None:
        term, first = (buffer.view(total.dtype)[: len(total)] for buffer in (self._term, self._first))
        np.copyto(first, self._read(0, index, begin, len(total)))
        total[:] = 0
        for number in range(1, len(self._plan.checkpoints)):
            values = self._read(number, index, begin, len(total))
            np.subtract(first, values, out=term, dtype=total.dtype)
            if self._shares:
                np.multiply(term, self._shares[number], out=term)
            np.add(total, term, out=total)
        if not self._shares:
            np.divide(total, len(self._plan.checkpoints), out=total)
        np.subtract(first, total, out=total)  # -0 less nothing is -0; -0 and nothing would be 0

    def _read(self, number: int, index: int, begin: int, count: int) -> Array:
        checkpoint = self._plan.checkpoints[number]
        dtype = checkpoint.dtypes[index]
        size = float_formats.SIZES[dtype]
        raw = self._raw[: count * size]
        checkpoint.read(index, begin * size, raw.data)
        return float_formats.widen(raw, dtype, self._scratch)

    def _culprit(self, index: int, begin: int, count: int) -> str:
        name = self._plan.names[index]
        for number, checkpoint in enumerate(self._plan.checkpoints):
            if not np.isfinite(self._read(number, index, begin, count)).all():
                return f"{name}: values are NaN or infinite in {checkpoint.label}"
        return (
            f"{name}: the mean is too large for {self._plan.dtypes[index]}, or a sum on the way to it for its own dtype"
        )
