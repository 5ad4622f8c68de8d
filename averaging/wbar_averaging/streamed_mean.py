"""Several checkpoints' tensors combined, given out in pieces that are small enough to stay in a core's own cache.

The mean is here, other combinations in `task_vectors`. Where the sum is wider than what is summed (float64 over float32),
adding k equal numbers and dividing by k gives the number back. Where it is not, x − Σ wᵢ(x − xᵢ) / Σ wᵢ does, with x the one
of the largest weight (so that a weight of 1 beside 0 gives x itself), and that is what is summed there.

Only floating-point numbers of 16 bits and more are combined. A single integer is a count, as BatchNorm's
`num_batches_tracked`: the last checkpoint's is taken; but for a quantized tensor's zero point. All else (integers, booleans,
8-bit floating-point formats) is codes, whose mean means nothing: it is copied where all checkpoints agree, and refused by name
where they do not.
"""

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wbar_averaging import float_formats, network_metadata
from wbar_averaging.checkpoint_file import Checkpoint, Entry, OpenFiles, open_checkpoint
from wbar_averaging.float_formats import Array
from wbar_averaging.quoting import shown
from wbar_averaging.safetensors_file import SIZES

# Numbers at a time: all buffers are 5 MiB, the sum and one file's piece 1.5. On 8 × 346 MB, 32 to 256 thousand differ little.
PIECE = 131_072
LISTED = 20
COUNT, FLOAT = "a count", "float"
# As PEFT (which also names the adapter: lora_A.default.weight), kohya's scripts, diffusers and LyCORIS (LoHa, LoKr) name them.
FACTOR = re.compile(
    r"(^|[._])(lora_(embedding_)?(A|B|a|b|down|up)|lora(_linear_layer)?\.(down|up)|(hada|lokr)_[wt]\d(_[ab])?)(\.|$)"
)
ZERO_POINT = re.compile(r"(.*[._])?(zero_?points?|zeros?|zp)", re.IGNORECASE)

Progress = Callable[[int, int], None]


class Mismatch(ValueError):
    """The checkpoints do not hold the same tensors, or codes that differ, or are of different networks.

    The message lists how, in up to LISTED lines.
    """


class NotFinite(ValueError):
    """A value is NaN or infinite, in a checkpoint or in the result; the message names the tensor and the file."""


class FactorsApart(Mismatch):
    """The checkpoints hold the two factors of LoRA adapters, whose product is what has a mean; the message names one."""


@dataclass(frozen=True)
class Plan:
    """Checkpoints, and their tensors numbered as in the first one, with the result's dtypes and shapes."""

    checkpoints: list[Checkpoint]
    names: list[str]
    dtypes: list[str]
    shapes: list[tuple[int, ...]]
    metadata: dict[str, str]

    def elements(self, index: int) -> int:
        """Return how many numbers tensor `index` has."""
        return math.prod(self.shapes[index])

    def bytes(self, index: int) -> int:
        """Return how many bytes tensor `index` takes in the result's file."""
        return self.elements(index) * SIZES[self.dtypes[index]]

    def read_bytes(self, index: int, elements: int) -> int:
        """Return how many bytes are read, over all checkpoints, for `elements` numbers of tensor `index`."""
        used = self.checkpoints[-1:] if self.kind(index) == COUNT else self.checkpoints
        return elements * sum(SIZES[checkpoint.dtypes[index]] for checkpoint in used)

    def kind(self, index: int) -> str:
        """Return FLOAT for what is combined, COUNT for what the last checkpoint decides, else the dtype of what is copied."""
        return _kind(self.names[index], self.dtypes[index], self.shapes[index])


def make_plan(paths: Sequence[str | os.PathLike[str]], files: OpenFiles, copies: Path, chosen: str | None) -> Plan:
    """Open and compare the checkpoints. Of all but the first, only dtypes and places are kept.

    copies: a folder for copies of PyTorch files, see `open_checkpoint`. chosen: the dtype of all floating-point tensors of
    the result; None leaves each as it is in the first checkpoint.

    Raises Mismatch, FactorsApart, and what `open_checkpoint` does.
    """
    first = open_checkpoint(paths[0], files, copies)
    entries, names, checkpoints, metadata = first.entries, list(first.entries), [first], dict(first.metadata)
    _refuse_factors(first)
    for path in paths[1:]:
        checkpoint = open_checkpoint(path, files, copies)
        _refuse(_differences(first.label, entries, checkpoint))
        other = network_metadata.difference(first.label, first.metadata, checkpoint.label, checkpoint.metadata)
        _refuse([other] if other else [])
        metadata = {key: value for key, value in metadata.items() if key in checkpoint.metadata}
        checkpoint.keep(names)
        checkpoints.append(checkpoint)
    first.keep(names)
    pairs = zip(first.dtypes, checkpoints[-1].dtypes, strict=True)
    dtypes = [(chosen or begin) if begin in float_formats.SIZES else end for begin, end in pairs]
    return Plan(checkpoints, names, dtypes, [entries[name].shape for name in names], metadata)


def _refuse_factors(checkpoint: Checkpoint) -> None:
    """Raise FactorsApart for a checkpoint with factors of adapters."""
    name = next((name for name in checkpoint.entries if FACTOR.search(name)), None)
    if name is not None:
        raise FactorsApart(
            f"{shown(name)} in {checkpoint.label} is one factor of an adapter: the mean of ΔW = B·A is not the product of the "
            "factors' means; merge LoRA adapters as folders with their adapter_config.json, and give the rank of the result"
        )


def _differences(label: str, entries: dict[str, Entry], other: Checkpoint) -> list[str]:
    lines = []
    for name in sorted(entries.keys() | other.entries.keys()):
        here, there = entries.get(name), other.entries.get(name)
        if here is None or there is None or likeness(name, here) != likeness(name, there):
            lines.append(f"{shown(name)}: {_shown(here)} in {label}, {_shown(there)} in {other.label}")
    return lines


def likeness(name: str, entry: Entry) -> tuple[str, tuple[int, ...]]:
    """Return what must be equal of tensors that are merged: whether they are averaged, count or hold codes; and the shape."""
    return _kind(name, entry.dtype, entry.shape), entry.shape


def _kind(name: str, dtype: str, shape: tuple[int, ...]) -> str:
    if dtype in float_formats.SIZES:
        return FLOAT
    counts = dtype.startswith(("U", "I")) and math.prod(shape) == 1
    return COUNT if counts and not ZERO_POINT.fullmatch(name) else dtype


def _shown(entry: Entry | None) -> str:
    return f"{entry.dtype} {list(entry.shape)}" if entry else "missing"


def _refuse(lines: list[str]) -> None:
    if lines:
        more = [f"… and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        raise Mismatch("\n".join(lines[:LISTED] + more))


class Combination(ABC):
    """The result's tensors, piece by piece, in buffers that are made once: new ones would cost a page fault for every page.

    wide: the dtype to compute in. progress: called after every piece with the bytes read so far and in all.
    """

    noun = "result"

    def __init__(self, plan: Plan, wide: "np.dtype[Any]", progress: Progress | None) -> None:
        self._plan, self._wide = plan, wide
        self._progress, self._done = progress, 0
        self._all = sum(plan.read_bytes(index, plan.elements(index)) for index in range(len(plan.names)))
        self._raw = np.empty(PIECE * 8, np.uint8)
        self._sum, self._term, self._first = (np.empty(PIECE, np.float64) for _ in range(3))
        self._scratch = np.empty(PIECE, np.float32)

    def pieces(self, index: int) -> Iterator[memoryview]:
        """Yield the tensor's result as bytes, in order. Each piece overwrites the one before.

        Raises NotFinite, and Mismatch for codes that differ.
        """
        elements, kind = self._plan.elements(index), self._plan.kind(index)
        for begin in range(0, elements, PIECE):
            count = min(PIECE, elements - begin)
            yield self._combined(index, begin, count) if kind == FLOAT else self._copy(index, begin, count)
            self._advance(self._plan.read_bytes(index, count))

    @abstractmethod
    def _combine(self, index: int, begin: int, total: Array) -> None:
        """Compute the numbers from `begin` on of tensor `index` into `total`, which is of the dtype to compute in."""

    def _advance(self, count: int) -> None:
        if self._progress:
            self._done += count
            self._progress(self._done, self._all)

    def _copy(self, index: int, begin: int, count: int) -> memoryview:
        last, kind = self._plan.checkpoints[-1], self._plan.kind(index)
        size = SIZES[last.dtypes[index]]
        raw, other = self._raw[: count * size], self._sum.view(np.uint8)[: count * size]
        last.read(index, begin * size, raw.data)
        for checkpoint in self._plan.checkpoints[:-1] if kind != COUNT else []:
            checkpoint.read(index, begin * size, other.data)
            if not np.array_equal(raw, other):
                raise Mismatch(
                    f"{shown(self._plan.names[index])}: {kind} {list(self._plan.shapes[index])} holds codes, which have no "
                    f"mean, and they differ between {checkpoint.label} and {last.label}: dequantize the checkpoints first"
                )
        return raw.data

    def _combined(self, index: int, begin: int, count: int) -> memoryview:
        dtype = self._plan.dtypes[index]
        widest = max(self._widest(index), float_formats.SIZES[dtype])
        total = self._sum.view(self._wide if widest <= self._wide.itemsize else np.dtype(np.float64))[:count]
        self._combine(index, begin, total)
        raw = self._raw[: count * float_formats.SIZES[dtype]]
        whole = float_formats.all_finite(total)
        if whole:
            float_formats.narrow(total, dtype, raw, self._term)
        if not whole or not float_formats.finite(raw, dtype):
            raise NotFinite(self._culprit(index, begin, count))
        return raw.data

    def _widest(self, index: int) -> int:
        """Bytes of the widest number that is read for tensor `index`."""
        return max(float_formats.SIZES[checkpoint.dtypes[index]] for checkpoint in self._plan.checkpoints)

    def _read(self, number: int, index: int, begin: int, count: int) -> Array:
        checkpoint = self._plan.checkpoints[number]
        dtype = checkpoint.dtypes[index]
        size = float_formats.SIZES[dtype]
        raw = self._raw[: count * size]
        checkpoint.read(index, begin * size, raw.data)
        return float_formats.widen(raw, dtype, self._scratch)

    def _culprit(self, index: int, begin: int, count: int) -> str:
        name = shown(self._plan.names[index])
        for number, checkpoint in enumerate(self._plan.checkpoints):
            if not np.isfinite(self._read(number, index, begin, count)).all():
                return f"{name}: values are NaN or infinite in {checkpoint.label}"
        dtype = self._plan.dtypes[index]
        return f"{name}: the {self.noun} is too large for {dtype}, or a sum on the way to it for its own dtype"


class Mean(Combination):
    """The mean of all checkpoints. shares: the weights, of sum 1; None for equal ones."""

    noun = "mean"

    def __init__(
        self, plan: Plan, shares: list[float] | None, wide: "np.dtype[Any]", progress: Progress | None
    ) -> None:
        super().__init__(plan, wide, progress)
        self._shares = shares
        self._heaviest = shares.index(max(shares)) if shares else 0

    def _combine(self, index: int, begin: int, total: Array) -> None:
        if self._widest(index) < total.itemsize:
            self._add(index, begin, total)
        else:
            self._add_differences(index, begin, total)

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
        np.copyto(first, self._read(self._heaviest, index, begin, len(total)))
        total[:] = 0
        for number in range(len(self._plan.checkpoints)):
            if number == self._heaviest:
                continue
            values = self._read(number, index, begin, len(total))
            np.subtract(first, values, out=term, dtype=total.dtype)
            if self._shares:
                np.multiply(term, self._shares[number], out=term)
            np.add(total, term, out=total)
        if not self._shares:
            np.divide(total, len(self._plan.checkpoints), out=total)
        np.subtract(first, total, out=total)  # -0 less nothing is -0; -0 and nothing would be 0
