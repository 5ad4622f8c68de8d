"""Merging checkpoint files without training: means along a run, and task vectors added to a base.

A small piece of every file is read at a time, so that memory does not grow with them, whatever model they are of. numpy is all
that is needed, unless a checkpoint is a PyTorch file. The formulas stand in `decay_weights` and `task_vectors`; how LoRA
adapters are merged, in `lora`.
"""

import json
import math
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from wbar_averaging import task_vectors
from wbar_averaging.checkpoint_file import OpenFiles
from wbar_averaging.checkpoint_writer import write_checkpoint
from wbar_averaging.decay_weights import decay_weights, weight_sum
from wbar_averaging.float_formats import dtype_named
from wbar_averaging.lora import is_adapter, merge_adapters
from wbar_averaging.model_folder import carried_files, copy_files, place_folder
from wbar_averaging.streamed_mean import Combination, Mean, Plan, Progress, make_plan

StrPath = str | os.PathLike[str]
MODEL = "model.safetensors"
FORMAT = MappingProxyType({"format": "pt"})  # transformers loads no model.safetensors whose metadata lack it
MADE = ("wbar.averaged", "wbar.merge")  # what a file's metadata say of how it was made: the inputs' own do not hold


class MergeMethod(ABC):
    """How checkpoints are combined. needs_base: whether it adds to a base, a checkpoint beside those that are merged."""

    needs_base = True

    @abstractmethod
    def check(self, count: int) -> None:
        """Raise ValueError for options that make no sense, or do not fit `count` checkpoints without the base."""

    @abstractmethod
    def combination(self, plan: Plan, progress: Progress | None) -> Combination:
        """Return what computes the result's tensors; the base is the plan's first checkpoint."""

    @abstractmethod
    def metadata(self, count: int) -> dict[str, str]:
        """Return what the result's file says of it."""


@dataclass(frozen=True)
class WeightedMean(MergeMethod):
    """The mean Σ wᵢxᵢ / Σ wᵢ.

    weights: one per checkpoint; or a shape of `decay_weights` for the checkpoints of one run, oldest first; None: equal.
    accumulate: float64, or float32 for tensors that are stored no wider.
    """

    needs_base = False

    weights: Sequence[float] | str | None = None
    accumulate: DTypeLike = np.float64

    def check(self, count: int) -> None:
        accumulator(self.accumulate)
        self.shares(count)

    def shares(self, count: int) -> list[float] | None:
        """Return the weights of `count` checkpoints over their sum, None where all are equal. Raises ValueError."""
        weights = decay_weights(self.weights, count) if isinstance(self.weights, str) and count else self.weights
        return normalized_weights(count, None if isinstance(weights, str) else weights)

    def combination(self, plan: Plan, progress: Progress | None) -> Combination:
        return Mean(plan, self.shares(len(plan.checkpoints)), accumulator(self.accumulate), progress)

    def metadata(self, count: int) -> dict[str, str]:
        return {MADE[0]: str(count)}


@dataclass(frozen=True)
class TaskArithmetic(MergeMethod):
    """w₀ + Σ λᵢ(wᵢ − w₀). scale: λ, one for all checkpoints or one for each; of one checkpoint, WiSE-FT's α."""

    scale: float | Sequence[float] = 1.0

    def check(self, count: int) -> None:
        _scales(self.scale, count)

    def combination(self, plan: Plan, progress: Progress | None) -> Combination:
        return task_vectors.TaskArithmetic(plan, _scales(self.scale, len(plan.checkpoints) - 1), progress)

    def metadata(self, count: int) -> dict[str, str]:
        return _merge_metadata("task_arithmetic", count, scale=_scales(self.scale, count))


@dataclass(frozen=True)
class Dare(MergeMethod):
    """Task arithmetic with a share `drop` of each task vector dropped at random and the rest divided by 1 − drop.

    scale: as of `TaskArithmetic`. The same seed gives the same bits.
    """

    drop: float = 0.9
    scale: float | Sequence[float] = 1.0
    seed: int = 0

    def check(self, count: int) -> None:
        _scales(self.scale, count)
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is a share in [0, 1), not {self.drop:g}")
        if self.seed < 0:
            raise ValueError(f"the seed must be 0 or more, not {self.seed}")

    def combination(self, plan: Plan, progress: Progress | None) -> Combination:
        scales = _scales(self.scale, len(plan.checkpoints) - 1)
        return task_vectors.Dare(plan, scales, self.drop, self.seed, progress)

    def metadata(self, count: int) -> dict[str, str]:
        return _merge_metadata("dare", count, drop=self.drop, scale=_scales(self.scale, count), seed=self.seed)


@dataclass(frozen=True)
class Ties(MergeMethod):
    """Trim each task vector to its share `density` of largest magnitude, elect signs, add λ times the mean that agrees."""

    density: float = 0.2
    scale: float = 1.0

    def check(self, count: int) -> None:
        _scales(self.scale, count)
        if not 0 < self.density <= 1:
            raise ValueError(f"density is a share in (0, 1], not {self.density:g}")

    def combination(self, plan: Plan, progress: Progress | None) -> Combination:
        return task_vectors.Ties(plan, self.scale, self.density, progress)

    def metadata(self, count: int) -> dict[str, str]:
        return _merge_metadata("ties", count, density=self.density, scale=self.scale)


@dataclass(frozen=True)
class Merged:
    """The outcome of a merge.

    path: the file, the index of its shards, or the adapter's file.
    carried: files beside the weights that were copied from the first checkpoint's folder.
    residuals: of adapters, by module: ‖ΔW − B·A‖ / ‖ΔW‖ (Frobenius), what the rank left out.
    """

    path: Path
    carried: tuple[str, ...] = ()
    residuals: dict[str, float] = field(default_factory=dict)


def merge_checkpoints(
    paths: Sequence[StrPath],
    out: StrPath,
    method: MergeMethod | None = None,
    *,
    base: StrPath | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    lora_rank: int | None = None,
    progress: Progress | None = None,
) -> Merged:
    """Write the merge of checkpoints to `out`.

    paths: safetensors files, PyTorch files, indexes of sharded ones (….safetensors.index.json, ….bin.index.json), folders
    that hold one of them; all with tensors of the same names and shapes. base: w₀ of methods that need one.
    out: ….safetensors for the weights alone; what lay there is replaced. Any other name is a new folder, with the weights as
    model.safetensors, and `config.json`, tokenizer and preprocessor files of the first checkpoint (the base where there is
    one) beside them, if that was named as a folder or an index.
    method: by default the equal mean.
    dtype: F16, BF16, F32 or F64 for all floating-point tensors; by default each keeps the first checkpoint's.
    max_shard_bytes: split what is larger into ….-00001-of-0000N.safetensors and an index of them. A tensor larger than that has
    a file to itself.
    lora_rank: of a merge of PEFT adapters, which are folders with an adapter_config.json: see `lora`.
    progress: called with the bytes read so far and in all.

    Numbers are combined in float64 and rounded once. Single integers, which count, are the last checkpoint's; other integers,
    booleans and 8-bit floating-point numbers are codes: they are copied, and must be equal in all. Metadata: the keys that all
    have, where they differ the first's values, and what was merged; in a folder `format`, which transformers asks for.

    Files appear under their own names only when all is written and synced; on failure nothing is left. PyTorch files are
    mapped: their pages count as resident, but the system can take them back.

    Raises ValueError for arguments that make no sense, UnreadableCheckpoint, InvalidSafetensors, Mismatch, FactorsApart,
    NotFinite or UnfitConfig (all of them ValueErrors), OSError.
    """
    method = method or WeightedMean()
    if not paths:
        raise ValueError("the merge of no checkpoints is undefined: name at least one")
    if (base is None) == method.needs_base:
        raise ValueError("the method adds to a base: give one" if base is None else "a mean has no base: leave it out")
    method.check(len(paths))
    chosen = None if dtype is None else dtype_named(dtype)
    if max_shard_bytes is not None and max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, not {max_shard_bytes}")
    sources = [Path(path) for path in ([] if base is None else [base]) + list(paths)]
    if lora_rank is not None or all(map(is_adapter, sources)):
        if not isinstance(method, WeightedMean):
            raise ValueError("adapters are merged by a weighted mean of their ΔW only")
        if max_shard_bytes is not None:
            raise ValueError("a merged adapter is one file: leave the size of shards out")
        residuals = merge_adapters(sources, method.shares(len(sources)), Path(out), lora_rank, chosen, progress)
        return Merged(Path(out) / "adapter_model.safetensors", residuals=residuals)
    if Path(out).suffix == ".safetensors":
        out = checked_out(out)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            return Merged(_write(sources, method, out, Path(folder), chosen, max_shard_bytes, progress))
    with place_folder(Path(out)) as (scratch, folder):
        carried = carried_files(sources)
        written = _write(sources, method, folder / MODEL, scratch, chosen, max_shard_bytes, progress, FORMAT)
        copy_files(carried, folder, chosen)
    return Merged(Path(out) / written.name, tuple(path.name for path in carried))


def _write(
    sources: list[Path],
    method: MergeMethod,
    out: Path,
    scratch: Path,
    chosen: str | None,
    max_shard_bytes: int | None,
    progress: Progress | None,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    with OpenFiles() as files:
        (scratch / "copies").mkdir()
        plan = make_plan(sources, files, scratch / "copies", chosen)
        plan.metadata.update({key: value for key, value in metadata.items() if key not in plan.metadata})
        for key in MADE:
            plan.metadata.pop(key, None)
        plan.metadata.update(method.metadata(len(sources) - method.needs_base))
        return write_checkpoint(plan, method.combination(plan, progress), out, scratch, max_shard_bytes)


def normalized_weights(count: int, weights: Sequence[float] | None) -> list[float] | None:
    """Return the weights over their sum, None where all are equal. Raises ValueError for what makes no mean."""
    if count == 0:
        raise ValueError("the mean of no checkpoints is undefined: name at least one")
    if weights is None:
        return None
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} checkpoints")
    values = [float(weight) for weight in weights]
    if not all(map(math.isfinite, values)) or not math.isfinite(sum(values)):
        raise ValueError(f"the weights and their sum must be finite: {values}")
    total = weight_sum(values)
    return None if len(set(values)) == 1 else [value / total for value in values]


def accumulator(accumulate: DTypeLike) -> "np.dtype[Any]":
    """Return the dtype to sum a mean in. Raises ValueError for any but float32 and float64."""
    try:
        wide = np.dtype(accumulate)
    except TypeError:
        wide = None
    if wide not in (np.float32, np.float64):
        raise ValueError(f"accumulate must be float32 or float64, not {accumulate}")
    return wide


def checked_out(out: StrPath) -> Path:
    """Return the path of a result's file, if one can be written there. Raises ValueError, OSError."""
    path = Path(out)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the mean is a safetensors file: let its name end with .safetensors")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: there is no such folder to write to")
    return path


def _scales(scale: float | Sequence[float], count: int) -> list[float]:
    """One λ per checkpoint. Raises ValueError."""
    scales = [float(value) for value in scale] if isinstance(scale, Sequence) else [float(scale)] * count
    if len(scales) != count:
        raise ValueError(f"{len(scales)} scales for {count} checkpoints: give one, or one for each")
    if not all(map(math.isfinite, scales)):
        raise ValueError(f"the scales must be finite: {scales}")
    return scales


def _merge_metadata(name: str, count: int, **options: Any) -> dict[str, str]:
    return {MADE[1]: json.dumps({"type": name, "checkpoints": count, **options}, sort_keys=True)}
