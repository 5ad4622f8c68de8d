"""Soups of checkpoint files: the mean w̄ = Σ wᵢxᵢ / Σ wᵢ, and the greedy choice of what enters it.

Wortsman et al. 2022, "Model soups": the uniform soup (section 2), other weights, and the greedy soup (their recipe 1).
`merging` makes the means.
"""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from wbar_averaging.checkpoint_file import OpenFiles
from wbar_averaging.float_formats import dtype_named
from wbar_averaging.merging import (
    StrPath,
    WeightedMean,
    accumulator,
    checked_out,
    merge_checkpoints,
    normalized_weights,
)
from wbar_averaging.replacing import replace_checkpoint
from wbar_averaging.streamed_mean import Progress, make_plan


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

    Single integers, which count, are the last checkpoint's. Other integers, booleans and 8-bit floating-point numbers are
    codes: they are copied, and must be equal in all. Metadata: the keys that all have, where they differ the first's values,
    and `wbar.averaged`, the number of checkpoints.

    Files appear under their own names only when all is written and synced; on failure nothing is left. What lay under `out`
    before is replaced as a whole: a single file goes when shards come, shards and their index when others or a single file
    come. `out` may be one of the paths. PyTorch files are mapped: their pages count as resident, but the system can take
    them back.

    Raises ValueError for arguments that make no sense, UnreadableCheckpoint, InvalidSafetensors, Mismatch or NotFinite (all
    of them ValueErrors), OSError.
    """
    out = checked_out(out)
    method = WeightedMean(None if weights is None else tuple(weights), accumulate)
    return merge_checkpoints(paths, out, method, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=progress).path


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
    out, chosen = checked_out(out), dtype and dtype_named(dtype)
    accumulator(accumulate), normalized_weights(len(paths), None)
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
