"""w̄ = Σ wᵢxᵢ / Σ wᵢ over checkpoint files, a small piece of every file at a time: memory does not grow with them.

Wortsman et al. 2022, "Model soups": the uniform soup (section 2), other weights, and the greedy soup (their recipe 1).
numpy is all that is needed, unless a checkpoint is a PyTorch file.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike

from wbar_averaging.checkpoint_file import OpenFiles
from wbar_averaging.float_formats import dtype_named
from wbar_averaging.replacing import index_of, replace_checkpoint, shard_of
from wbar_averaging.safetensors_file import SIZES, header_bytes
from wbar_averaging.streamed_mean import Mean, Plan, Progress, make_plan

StrPath = str | os.PathLike[str]


def average_checkpoints(
    paths: Sequence[StrPath],
    weights: Sequence[float] | None = None,
    out: StrPath = "mean.safetensors",
    *,
    accumulate: DTypeLike = np.float64,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the weighted mean of checkpoints to `out` (….safetensors) and return the path that was written.

    paths: safetensors files, PyTorch files, indexes of sharded ones (….safetensors.index.json, ….bin.index.json), folders
    that hold one of them; all with tensors of the same names and shapes.
    weights: one per path, divided by their sum; equal if None.
    accumulate: float64, or float32 for tensors that are stored no wider; the mean is rounded once, to its dtype.
    dtype: F16, BF16, F32 or F64 for all floating-point tensors; by default each keeps the first checkpoint's.
    max_shard_bytes: split what is larger into out-00001-of-0000N.safetensors …, listed by out.safetensors.index.json, whose
    path is then returned. A tensor larger than that has a file to itself.
    progress: called with the bytes read so far and in all.

    Integer and boolean tensors are the last checkpoint's. Metadata: the keys that all have, where they differ the first's
    values, and `wbar.averaged`, the number of checkpoints.

    Files appear under their own names only when all is written and synced; on failure nothing is left. What lay under `out`
    before is replaced as a whole: a single file goes when shards come, shards and their index when others or a single file
    come. `out` may be one of the paths. PyTorch files are mapped: their pages count as resident, but the system can take
    them back.

    Raises ValueError for arguments that make no sense, UnreadableCheckpoint, InvalidSafetensors, Mismatch or NotFinite (all
    of them ValueErrors), OSError.
    """
    shares = _shares(len(paths), weights)
    wide = _accumulator(accumulate)
    chosen = None if dtype is None else dtype_named(dtype)
    if max_shard_bytes is not None and max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, not {max_shard_bytes}")
    out = _checked_out(out)
    with OpenFiles() as files, tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        scratch = Path(folder)
        (scratch / "copies").mkdir()
        plan = make_plan(paths, files, scratch / "copies", chosen)
        mean = Mean(plan, shares, wide, progress)
        return _write(plan, mean, out, scratch, max_shard_bytes)


def _shares(count: int, weights: Sequence[float] | None) -> list[float] | None:
    """The weights over their sum, None where all are equal."""
    if count == 0:
        raise ValueError("the mean of no checkpoints is undefined: name at least one")
    if weights is None:
        return None
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} checkpoints")
    values = [float(weight) for weight in weights]
    if not all(map(math.isfinite, values)) or not math.isfinite(sum(values)):
        raise ValueError(f"the weights and their sum must be finite: {values}")
    total = math.fsum(values)
    if total <= 0:
        raise ValueError(f"the weights must have a sum above 0, not {total:g}")
    return None if len(set(values)) == 1 else [value / total for value in values]


def _accumulator(accumulate: DTypeLike) -> "np.dtype[Any]":
    try:
        wide = np.dtype(accumulate)
    except TypeError:
        wide = None
    if wide not in (np.float32, np.float64):
        raise ValueError(f"accumulate must be float32 or float64, not {accumulate}")
    return wide


def _checked_out(out: StrPath) -> Path:
    path = Path(out)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the mean is a safetensors file: let its name end with .safetensors")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: there is no such folder to write to")
    return path


def _write(plan: Plan, mean: Mean, out: Path, scratch: Path, max_shard_bytes: int | None) -> Path:
    """Write the mean and return its path. All files are complete and synced in `scratch` before one gets its own name."""
    # The order of write_safetensors: by falling alignment, then by name.
    order = sorted(range(len(plan.names)), key=lambda index: (-SIZES[plan.dtypes[index]], plan.names[index]))
    shards = _shards(plan, order, max_shard_bytes)
    finals = [out] if len(shards) == 1 else [shard_of(out, n, len(shards)) for n in range(1, len(shards) + 1)]
    written = [(scratch / final.name, final) for final in finals]
    with np.errstate(all="ignore"):  # what is not finite is refused, with its name
        for shard, (path, _) in zip(shards, written, strict=True):
            tensors = [(plan.names[index], plan.dtypes[index], list(plan.shapes[index])) for index in shard]
            with open(path, "wb") as file:
                file.write(header_bytes(tensors, plan.metadata))
                for index in shard:
                    file.writelines(mean.pieces(index))
                _sync(file)
    if len(shards) > 1:
        homes = {plan.names[index]: final.name for shard, final in zip(shards, finals, strict=True) for index in shard}
        written.append((scratch / "index", index_of(out)))
        _write_index(written[-1][0], homes, sum(map(plan.bytes, order)))
    replace_checkpoint(written, out, scratch)
    return written[-1][1]


def _shards(plan: Plan, order: list[int], max_shard_bytes: int | None) -> list[list[int]]:
    shards, room = [list[int]()], max_shard_bytes or math.inf
    for index in order:
        size = plan.bytes(index)
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes or math.inf
        shards[-1].append(index)
        room -= size
    return shards


def _write_index(path: Path, homes: dict[str, str], total: int) -> None:
    with open(path, "wb") as file:
        content = {"metadata": {"total_size": total}, "weight_map": homes}
        file.write(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n")
        _sync(file)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@dataclass(frozen=True)
class Trial:
    """One checkpoint of a greedy soup.

    score: its own. mean_score: that of the mean with it, None for the first. kept: whether it stayed in the mean.
    """

    path: Path
    score: float
    mean_score: float | None
    kept: bool


@dataclass(frozen=True)
class Soup:
    """A greedy soup: where it was written, its score, and every checkpoint in the order in which it was tried."""

    path: Path
    score: float
    trials: tuple[Trial, ...]

    @property
    def members(self) -> tuple[Path, ...]:
        """Return the checkpoints in the mean, the best first."""
        return tuple(trial.path for trial in self.trials if trial.kept)


def greedy_soup(
    paths: Sequence[StrPath],
    score: Callable[[Path], float],
    out: StrPath = "soup.safetensors",
    *,
    accumulate: DTypeLike = np.float64,
    dtype: str | None = None,
) -> Soup:
    """Write the greedy soup of checkpoints to `out` (Wortsman et al. 2022, recipe 1).

    score: gives the checkpoint at a path a number on held-out data; higher is better. It is called for every one of `paths`
    as given, then for every mean on trial, a safetensors file.

    In falling order of their own scores, each checkpoint joins the mean if
    that mean's score does not fall. Each mean is made from the checkpoints anew, in one pass, so that `out` is what
    average_checkpoints gives for the members.

    No other file remains.

    Raises what average_checkpoints does, ValueError for a score that is NaN, and what `score` does.
    """
    out, chosen = _checked_out(out), dtype and dtype_named(dtype)
    _accumulator(accumulate), _shares(len(paths), None)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        best, candidate = Path(folder) / "best.safetensors", Path(folder) / "candidate.safetensors"
        with OpenFiles() as files:
            make_plan(paths, files, Path(folder), chosen or None)  # refused before the first costly score, not after
        own = [(_score(score, Path(path)), Path(path)) for path in paths]
        own.sort(key=lambda pair: -pair[0])
        highest, members, trials = own[0][0], [own[0][1]], [Trial(own[0][1], own[0][0], None, True)]
        average_checkpoints(members, None, best, accumulate=accumulate, dtype=dtype)
        for alone, path in own[1:]:
            average_checkpoints([*members, path], None, candidate, accumulate=accumulate, dtype=dtype)
            together = _score(score, candidate)
            trials.append(Trial(path, alone, together, together >= highest))
            if together >= highest:
                highest, members = together, [*members, path]
                os.replace(candidate, best)
        replace_checkpoint([(best, out)], out, Path(folder))
    return Soup(out, highest, tuple(trials))


def _score(score: Callable[[Path], float], path: Path) -> float:
    value = float(score(path))
    if math.isnan(value):
        raise ValueError(f"the score of {path} is NaN: it cannot be compared")
    return value
